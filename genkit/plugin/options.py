"""Options: typed dataclass fields, the source of flags, TOML keys, JSON and help texts."""

from __future__ import annotations

import dataclasses
import functools
import math
import traceback
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from genkit.errors import GenkitError, OptionError, PluginError
from genkit.plugin.component import Component
from genkit.plugin.conditions import check_needs
from genkit.plugin.names import check_other_names, nearest
from genkit.size import SIZE_TEXT, Size

NONE = "none"


@dataclass(frozen=True)
class Info:
    """Everything about an option beside its type and default."""

    help: str
    minimum: float | None = None
    maximum: float | None = None
    kind: str = ""
    optional: bool = False
    local: bool = False
    resumable: bool = False
    cure: Any = None
    short: bool = True
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A component that options choose: kind and name, and, once resolved, its options and class.

    `genkit.settings.choose` resolves it.
    """

    kind: str
    name: str
    options: Any = None
    component: Component | None = None

    def __bool__(self) -> bool:
        """False for an optional part that is left out."""
        return self.component is not None or self.name != NONE

    def build(self, *args: Any) -> Any:
        """Import the component's class and build it with its options and `args`.

        `OptionError` if it refuses them, `PluginError` if it fails in another way.
        """
        component = self.component
        if component is None:
            raise PluginError(
                f"the {self.kind} '{self.name}' has no options yet: "
                "resolve it with genkit.settings.choose or resolve"
            )
        try:
            return component.load()(self.options, *args)
        except GenkitError:
            raise
        except ValueError as error:
            raise OptionError(f"{component} cannot be built with these options: {error}") from error
        except Exception as error:  # A third party's class may raise anything.
            if "memory" in str(error):  # The command line has advice for models too large.
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise PluginError(
                f"{component} of {component.origin} cannot be built: "
                f"{type(error).__name__}: {error} "
                f"({PurePath(last.filename).name}, line {last.lineno})"
            ) from error


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    local: bool = False,
    resumable: bool = False,
    cure: Any = None,
    needs: str | tuple[str, ...] = (),
) -> Any:
    """A field of an options dataclass.

    Its type is int, float, bool, str, a `Literal[…]` of strings, or a tuple of one of these. A
    `local` option, such as a folder, means something on this machine only and is left out of model
    files. A `resumable` one may change when a run is resumed. A quantizer's option that counters
    the collapse of its codebook has as its `cure` the value to try, which the alarm suggests where
    the option is off. An option that does nothing unless others are set says so in `needs`, as
    `other` or `other=value`.
    """
    info = Info(
        help,
        minimum,
        maximum,
        local=local,
        resumable=resumable,
        cure=cure,
        needs=_tuple(needs),
    )
    return dataclasses.field(default=default, metadata={"genkit": info})


def part(
    kind: str,
    default: str,
    help: str,
    *,
    optional: bool = False,
    short: bool = True,
    needs: str | tuple[str, ...] = (),
) -> Any:
    """A field that chooses a component of `kind`; annotate it `Part`.

    If it is `optional`, the name `none` leaves the component out. What it `needs`, as an option
    does, its own options need too.
    """
    info = Info(help, kind=kind, optional=optional, short=short, needs=_tuple(needs))
    return dataclasses.field(default=Part(kind, default), metadata={"genkit": info})


def check_config(config: type) -> None:
    """`PluginError` if `config` is not made of options of usable types and values, and of parts."""
    if not typing.cast("Any", config).__dataclass_params__.frozen:
        raise PluginError(f"the options {config.__name__} must be @dataclass(frozen=True)")
    try:
        fields = fields_of(config)
    except Exception as error:  # Annotations of someone else's may fail in any way.
        raise PluginError(f"the options {config.__name__} cannot be used: {error}") from error
    try:
        check_other_names(config, [field.name for field, _, _ in fields])
    except (ValueError, TypeError) as error:
        raise PluginError(f"the options {config.__name__}: {error}") from error
    for field, kind, info in fields:
        try:
            check_needs(info.needs, [other.name for other, _, _ in fields], field.name)
        except ValueError as error:
            raise PluginError(f"the options {config.__name__}: {error}") from error
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        literal = typing.get_origin(inner) is typing.Literal
        if not (kind is Part if info.kind else literal or inner in _PARSERS):
            raise PluginError(
                f"the option {config.__name__}.{field.name} has the type {_type_text(kind)}; it "
                "can be int, float, bool, str, a Literal of strings, or a tuple of one of these, "
                "such as tuple[int, ...]"
            )
        if field.name == "name":
            raise PluginError(f"{config.__name__} has an option 'name', which a component's own is")
        for value in [] if info.kind else [field.default, *([info.cure] * (info.cure is not None))]:
            try:
                same = parse_value(kind, info, value, field.name) == value
            except OptionError as error:
                raise PluginError(f"the options {config.__name__}: {error}") from error
            if not same:
                raise PluginError(
                    f"the option {config.__name__}.{field.name} is {value!r}, which is no {kind}"
                )


def _type_text(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _tuple(needs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (needs,) if isinstance(needs, str) else needs


@functools.cache
def fields_of(config: type) -> list[tuple[dataclasses.Field[Any], Any, Info]]:
    """The fields of an options class, each with its type and what it says of itself."""
    hints = typing.get_type_hints(config)
    result = []
    for field in dataclasses.fields(config):
        if "genkit" not in field.metadata:
            raise OptionError(
                f"{config.__name__}.{field.name} must be a genkit.option or a genkit.part"
            )
        result.append((field, hints[field.name], field.metadata["genkit"]))
    return result


def parse_value(kind: Any, info: Info, value: Any, key: str) -> Any:
    """`value`, from TOML, JSON or a flag's text, as the type `kind`, or an `OptionError`."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        # The help shows values in brackets, so they are taken with them too.
        bare = isinstance(value, str) and value.strip().startswith("[") and value.endswith("]")
        value = value.strip()[1:-1] if bare else value
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            items = [items]
        if not items:
            raise OptionError(f"'{key}' is empty; it must hold a value at least")
        return tuple(parse_value(typing.get_args(kind)[0], info, item, key) for item in items)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise OptionError(
                f"'{key}' is {value!r}; it can be {', '.join(choices)}."
                f"{nearest(str(value), choices)}"
            )
        return value
    parsed = _PARSERS[kind](value)
    if parsed is None:
        raise OptionError(f"'{key}' is {value!r}; it must be {_NAMES[kind]}")
    least = min(parsed.pair) if isinstance(parsed, Size) else parsed
    if info.minimum is not None and least < info.minimum:
        raise OptionError(f"'{key}' is {value}; it must be at least {info.minimum:g}")
    if info.maximum is not None and parsed > info.maximum:
        raise OptionError(f"'{key}' is {value}; it must be at most {info.maximum:g}")
    return parsed


def _int(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            number = _float(value)  # People write 1e6 too.
            return int(number) if number is not None and number.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _bool(value: Any) -> bool | None:
    return (
        value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    )


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_PARSERS: Mapping[Any, Any] = types.MappingProxyType(
    {int: _int, float: _float, bool: _bool, str: _str, Size: Size.of}
)
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Size: f"{SIZE_TEXT}, such as 64 or 128x256",
}
