"""Options: typed dataclass fields that flags, TOML keys, checkpoints' JSON and the help come from.

*Settings* are nested plain dicts, as in a TOML file. A component is chosen by a table with its
`name` and its options, or by its name alone:
`{"steps": 100, "encoder": {"name": "aren", "attention": "pixel"}}`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from genkit.errors import GenkitError, OptionError, PluginError
from genkit.needs import check_needs
from genkit.registry import nearest, registry

NONE = "none"


@dataclass(frozen=True)
class _Info:
    help: str
    minimum: float | None = None
    maximum: float | None = None
    kind: str = ""
    optional: bool = False
    local: bool = False
    cure: Any = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A chosen component: kind, name and its options, None standing for its defaults."""

    kind: str
    name: str
    options: Any = None

    def __bool__(self) -> bool:
        """False for a part that may be left out and is."""
        return self.name != NONE or NONE in registry().names(self.kind)

    def build(self, *args: Any) -> Any:
        """Import the component's class and build it with its options and `args`.

        `OptionError` if it refuses them, `PluginError` if it fails in another way.
        """
        component = registry().component(self.kind, self.name)
        try:
            return component.load()(
                component.config() if self.options is None else self.options, *args
            )
        except GenkitError:
            raise
        except ValueError as error:
            raise OptionError(f"{component} cannot be built with these options: {error}") from error
        except Exception as error:  # Whatever someone else's class does when it is built.
            if "memory" in str(error):  # Too large a model: the command line knows what to do.
                raise
            owner = registry().owner(self.kind, self.name)
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise PluginError(
                f"{component} of {owner.distribution} {owner.version} cannot be built: "
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
    cure: Any = None,
    needs: str | tuple[str, ...] = (),
) -> Any:
    """A field of an options dataclass.

    Its type is int, float, bool, str, a `Literal[…]` of strings, or a tuple of one of these. A
    `local` option, such as a folder, means something on this machine only and is left out of model
    files. A quantizer's option that counters the collapse of its codebook has as its `cure` the
    value to try, which the alarm suggests where the option is off. An option that does nothing
    unless others are set says so in `needs`, in the forms of `genkit.needs.Need`.
    """
    info = _Info(help, minimum, maximum, local=local, cure=cure, needs=_tuple(needs))
    return dataclasses.field(default=default, metadata={"genkit": info})


def part(
    kind: str,
    default: str,
    help: str,
    *,
    optional: bool = False,
    needs: str | tuple[str, ...] = (),
) -> Any:
    """A field that chooses a component of `kind`; annotate it `Part`.

    If it is `optional`, the name `none` leaves the component out. What it `needs`, as an option
    does, its own options need too.
    """
    info = _Info(help, kind=kind, optional=optional, needs=_tuple(needs))
    return dataclasses.field(default=Part(kind, default), metadata={"genkit": info})


@dataclass(frozen=True)
class Spec:
    """One option of a tree of chosen components: where it is, what it takes, what it is now."""

    path: tuple[str, ...]
    type: Any
    info: _Info
    value: Any
    owner: str

    @property
    def key(self) -> str:
        """The dotted name as it stands in flags: `encoder.latent-channels`."""
        return ".".join(self.path).replace("_", "-")

    @property
    def choices(self) -> list[str]:
        """The names that the option can take, if it is a choice."""
        if self.info.kind:
            return registry().names(self.info.kind) + [NONE] * self.info.optional
        return (
            list(typing.get_args(self.type))
            if typing.get_origin(self.type) is typing.Literal
            else []
        )

    @property
    def cure(self) -> str:
        """The flag that would switch on a cure of codebook collapse, or nothing."""
        if self.info.cure is None or self.value == self.info.cure:
            return ""
        if self.type is bool:
            return f"--{self.key}"
        cure = f"{self.info.cure:g}" if isinstance(self.info.cure, float) else self.info.cure
        return f"--{self.key} {cure}" if self.choices or not self.value else ""

    def parse(self, value: Any) -> Any:
        """`value`, from TOML, JSON or a flag's text, as the option's type.

        `OptionError` if it cannot be.
        """
        return _parse(self.type, self.info, value, self.key)


def specs(
    config: type, settings: Mapping[str, Any], path: tuple[str, ...] = (), owner: str = ""
) -> Iterator[Spec]:
    """Every option of `config` and of the components that `settings` choose.

    Values are the settings' or the defaults.
    """
    for field, kind, info in _fields(config):
        here = (*path, field.name)
        value = settings.get(field.name, field.default)
        if not info.kind:
            yield Spec(here, kind, info, value, owner)
            continue
        chosen = _as_table(value)
        name = chosen.get("name", field.default.name)
        yield Spec(here, str, info, name, owner)
        if name in registry().names(info.kind):
            component = registry().component(info.kind, name)
            yield from specs(component.config, chosen, here, str(component))


def resolve(config: type, settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """An instance of `config` from `settings`, every value checked.

    An unknown key is an error that names the nearest ones.
    """
    names = [field.name for field in dataclasses.fields(config)]
    for key in settings:
        if key not in names:
            dotted = ".".join((*path, key)).replace("_", "-")
            raise OptionError(f"There is no option '{dotted}'.{nearest(key, names)}")
    values: dict[str, Any] = {}
    for field, kind, info in _fields(config):
        here = (*path, field.name)
        if field.name in settings or info.kind:
            value = settings.get(field.name, field.default)
            values[field.name] = (
                _resolve_part(info, value, field.default.name, here)
                if info.kind
                else _parse(kind, info, value, Spec(here, 0, info, 0, "").key)
            )
    try:
        return config(**values)
    except ValueError as error:
        where = ".".join(path).replace("_", "-")
        raise OptionError(f"{where}: {error}" if where else str(error)) from error


def settings_of(options: Any, *, local: bool = True) -> dict[str, Any]:
    """The settings that `resolve` turns into `options` again.

    They hold every option, or without `local` those that mean something on any machine.
    """
    result: dict[str, Any] = {}
    kind: type = type(options)
    for field, _, info in _fields(kind):
        if info.local and not local:
            continue
        value = getattr(options, field.name)
        if info.kind:
            table = {"name": value.name}
            if value.name in registry().names(value.kind):
                config = registry().component(value.kind, value.name).config
                table |= settings_of(
                    config() if value.options is None else value.options, local=local
                )
            result[field.name] = table
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def without_local(config: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without the local options of `config`, which no file may set."""
    local = {field.name for field, _, info in _fields(config) if info.local}
    return {key: value for key, value in settings.items() if key not in local}


def merge(config: type, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` overlaid by `upper`.

    Where `upper` names another component, `lower`'s options of the old one go.
    """
    result = dict(lower)
    parts: dict[str, Any] = {
        field.name: field.default for field, _, info in _fields(config) if info.kind
    }
    for key, value in upper.items():
        if key not in parts:
            result[key] = value
            continue
        old, new = _as_table(lower.get(key, parts[key])), _as_table(value)
        name, kind = new.get("name", old["name"]), parts[key].kind
        same = name == old["name"] and name in registry().names(kind)
        result[key] = (
            merge(registry().component(kind, name).config, old, new)
            if same
            else {**new, "name": name}
        )
    return result


def check_config(config: type) -> None:
    """`PluginError` if `config` is not made of options of usable types and values, and of parts."""
    if not typing.cast("Any", config).__dataclass_params__.frozen:
        raise PluginError(f"the options {config.__name__} must be @dataclass(frozen=True)")
    try:
        fields = _fields(config)
    except Exception as error:  # Annotations of someone else's may fail in any way.
        raise PluginError(f"the options {config.__name__} cannot be used: {error}") from error
    for field, kind, info in fields:
        try:
            check_needs(info.needs, [other.name for other, _, _ in fields], field.name)
        except ValueError as error:
            raise PluginError(f"the options {config.__name__}: {error}") from error
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        literal = typing.get_origin(inner) is typing.Literal
        if not (kind is Part if info.kind else literal or inner in _PARSERS):
            raise PluginError(
                f"the option {config.__name__}.{field.name} has no usable type: {kind}"
            )
        if field.name == "name":
            raise PluginError(f"{config.__name__} has an option 'name', which a component's own is")
        for value in [] if info.kind else [field.default, *([info.cure] * (info.cure is not None))]:
            try:
                same = _parse(kind, info, value, field.name) == value
            except OptionError as error:
                raise PluginError(f"the options {config.__name__}: {error}") from error
            if not same:
                raise PluginError(
                    f"the option {config.__name__}.{field.name} is {value!r}, which is no {kind}"
                )


def _tuple(needs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (needs,) if isinstance(needs, str) else needs


@functools.cache
def _fields(config: type) -> list[tuple[dataclasses.Field[Any], Any, _Info]]:
    hints = typing.get_type_hints(config)
    result = []
    for field in dataclasses.fields(config):
        if "genkit" not in field.metadata:
            raise OptionError(
                f"{config.__name__}.{field.name} must be a genkit.option or a genkit.part"
            )
        result.append((field, hints[field.name], field.metadata["genkit"]))
    return result


def _as_table(value: Any) -> dict[str, Any]:
    if isinstance(value, Part):
        return {"name": value.name}
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        return dict(value)
    raise OptionError(f"a component is chosen by its name or a table with a name, not by {value!r}")


def _resolve_part(info: _Info, value: Any, default: str, path: tuple[str, ...]) -> Part:
    table = _as_table(value)
    name = table.pop("name", default)
    key = ".".join(path).replace("_", "-")
    if not isinstance(name, str) or not name:
        installed = ", ".join(registry().names(info.kind)) or "none"
        raise OptionError(f"'{key}' names no {info.kind}; installed: {installed}")
    if name == NONE and info.optional:
        if table:
            raise OptionError(f"'{key}' is none and takes no option '{key}.{next(iter(table))}'")
        return Part(info.kind, NONE)
    return Part(info.kind, name, resolve(registry().component(info.kind, name).config, table, path))


def _parse(kind: Any, info: _Info, value: Any, key: str) -> Any:
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
        return tuple(_parse(typing.get_args(kind)[0], info, item, key) for item in items)
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
    if info.minimum is not None and parsed < info.minimum:
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
    {int: _int, float: _float, bool: _bool, str: _str}
)
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
