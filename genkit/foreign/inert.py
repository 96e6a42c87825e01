"""Records that take the place of all that a pickle names; none of them does anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import dtype


class Name:
    """A class or function that a pickle names, and that is not imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """The result of a call of a `Name`: its arguments, and all that a pickle put into it."""

    __slots__ = ("args", "items", "name", "state", "values")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None
        self.values: list[Any] | None = None

    def attributes(self) -> dict[Any, Any]:
        """Its state, if that is a dict, or a pair with a dict of slots."""
        if isinstance(self.state, tuple) and len(self.state) == 2:
            return next((each for each in self.state if isinstance(each, dict) and each), {})
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True, slots=True)
class Function:
    """One of genkit's own functions in place of the one that a pickle names.

    Its parameters are few and fixed: a call with others fails before anything is copied.
    """

    call: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class StorageType:
    """The type of a storage; without `dtype` it is one of bytes."""

    dtype: dtype | None


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that a pickle refers to; `start` is an offset in elements of its type."""

    key: str
    dtype: dtype | None
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a pickle describes it; nothing of it is checked yet."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A tensor that genkit does not read, with a phrase that says why and what to do."""

    reason: str
