"""Finds the tensors and the plain facts in the content of a pickle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genkit.checkpoint.header import is_text
from genkit.errors import CheckpointError
from genkit.foreign.arrays import Array
from genkit.foreign.inert import Inert, Name, Refused, Stored
from genkit.foreign.tensors import Storages

# Levels of nesting; the longest text among the facts, and the characters of all texts and names.
_DEPTH, _TEXT, _TEXTS = 64, 2**16, 2**26
# The longest name of a tensor.
_NAME = 1000
_ABSENT = object()
_UNUSUAL = "convert it to safetensors with the project that wrote it"


class Walk:
    """Collects the tensors of a file, which may take `room` bytes, under dotted names.

    A value with several names is found under each of them, and one inside itself once.
    """

    def __init__(self, room: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._room, self._left, self._texts = room, 0, _TEXTS
        self._made: dict[int, tuple[Any, Tensor]] = {}
        self._above: set[int] = set()
        self._storages: Storages | None = None

    def root(self, value: Any, storages: Storages | None, written: int) -> dict[str, Any]:
        """Collect the tensors of `value`; returns its facts.

        The file wrote `written` values. A few lists that hold each other twice would otherwise be
        found millions of times.
        """
        self._storages, self._made = storages, {}
        self._left = 4 * written + 10_000
        facts = self._visit(value, "")
        return facts if isinstance(facts, dict) else {}

    def _visit(self, value: Any, name: str) -> Any:
        """The facts in `value`, or `_ABSENT`."""
        self._look(1)
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**63 else _ABSENT
        if isinstance(value, str):
            return self._fact(value)
        if isinstance(value, Stored | Array | Refused):
            self._collect(value, name or "tensor")
            return _ABSENT
        if not isinstance(value, dict | list | tuple | Inert) or id(value) in self._above:
            return _ABSENT
        if len(self._above) >= _DEPTH:
            raise CheckpointError(f"it is nested over {_DEPTH} levels deep; {_UNUSUAL}")
        self._above.add(id(value))
        try:
            if isinstance(value, Inert):
                return self._object(value, name)
            return self._dict(value, name) if isinstance(value, dict) else self._list(value, name)
        finally:
            self._above.discard(id(value))

    def _look(self, count: int) -> None:
        """Count values that are looked at."""
        self._left -= count
        if self._left < 0:
            raise CheckpointError(f"it repeats its values too often; {_UNUSUAL}")

    def _dict(self, values: dict[Any, Any], name: str) -> Any:
        self._look(len(values))
        facts: dict[str, Any] = {}
        for key, value in values.items():
            if (text := _key(key)) is not None:
                fact = self._visit(value, self._joined(name, text))
                if fact is not _ABSENT:
                    facts[text] = fact
        return facts if facts or not values else _ABSENT

    def _list(self, values: list[Any] | tuple[Any, ...], name: str) -> Any:
        found = [
            self._visit(value, self._joined(name, str(number)))
            for number, value in enumerate(values)
        ]
        if found and all(fact is _ABSENT for fact in found):
            return _ABSENT
        return [None if fact is _ABSENT else fact for fact in found]

    def _object(self, value: Inert, name: str) -> Any:
        """The facts of an object: a module, a node of OmegaConf, or any other by its contents."""
        state = value.attributes()
        if isinstance(state.get("_modules"), dict):
            return self._module(state, name)
        for key in ("_content", "_val"):
            if key in state:
                return self._visit(state[key], name)
        if value.items is not None:
            return self._dict(value.items, name)
        if value.values is not None:
            return self._list(value.values, name)
        return self._dict(state, name) if state else _ABSENT

    def _module(self, state: dict[Any, Any], name: str) -> Any:
        """The plain attributes of a pickled module and of its parts."""
        passing = state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, list) else []
        self._look(len(state) + len(passing))
        left_out = {key for key in passing if isinstance(key, str)}
        for group in ("_parameters", "_buffers"):
            held = state.get(group)
            if isinstance(held, dict):
                self._look(len(held))
                self._dict({k: item for k, item in held.items() if k not in left_out}, name)
        own = {
            key: item
            for key, item in state.items()
            if isinstance(key, str) and not key.startswith("_") and _is_plain(item)
        }
        facts = [self._dict(own, name), self._dict(state["_modules"], name)]
        return {key: item for each in facts if isinstance(each, dict) for key, item in each.items()}

    def _collect(self, value: Stored | Array | Refused, name: str) -> None:
        if name in self.tensors:
            raise CheckpointError(f"two of its tensors have the name '{name}'; {_UNUSUAL}")
        if isinstance(value, Refused):
            raise CheckpointError(f"its tensor '{name}' {value.reason}")
        tensor = self._made[id(value)][1] if id(value) in self._made else self._new(value, name)
        if tensor is None:
            return
        self._room -= tensor.numel() * tensor.element_size()
        if self._room < 0:
            raise CheckpointError(f"its tensors are far larger than the file; {_UNUSUAL}")
        self._made[id(value)] = value, tensor
        self.tensors[name] = tensor

    def _new(self, value: Stored | Array, name: str) -> Tensor | None:
        if isinstance(value, Array):
            return value.tensor(name)
        if self._storages is None:
            raise CheckpointError(f"its tensor '{name}' has no storage; {_UNUSUAL}")
        return self._storages.tensor(value, name)

    def _joined(self, name: str, key: str) -> str:
        full = f"{name}.{key}" if name else key
        self._spend(len(full))
        if len(full) > _NAME or not is_text(full):
            raise CheckpointError(
                f"its names are damaged or too long, such as '{full[:40]}…'; {_UNUSUAL}"
            )
        return full

    def _fact(self, text: str) -> Any:
        """A text among the facts, if it is not too long."""
        self._spend(min(len(text), _TEXT))
        if len(text) > _TEXT:
            return _ABSENT
        return text.encode("utf-8", "replace").decode()

    def _spend(self, count: int) -> None:
        self._texts -= count
        if self._texts < 0:
            raise CheckpointError(f"it holds over {_TEXTS} characters of text; {_UNUSUAL}")


def _key(key: Any) -> str | None:
    """The text of a key; None if it has none."""
    if isinstance(key, Name):
        return key.name
    return str(key) if key is None or isinstance(key, str | int | float) else None


def _is_plain(value: Any) -> bool:
    """Whether an attribute of a module is a fact: a value, or a short list of values."""
    values = value if isinstance(value, list | tuple) else [value]
    return len(values) <= 100 and all(
        each is None or isinstance(each, bool | int | float | str) for each in values
    )
