"""Settings: nested plain dicts, as in a TOML file, and the options that they stand for.

A component is chosen by a table with its `name` and its options, or by its name alone:
`{"steps": 100, "encoder": {"name": "aren", "attention": "pixel"}}`.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import OptionError
from genkit.plugin.names import nearest, other_names
from genkit.plugin.options import NONE, Info, Part, fields_of, parse_value
from genkit.plugin.registry import registry
from genkit.size import Size


@dataclass(frozen=True)
class Spec:
    """One option of a tree of chosen components: where it is, what it takes, what it is now."""

    path: tuple[str, ...]
    type: Any
    info: Info
    value: Any
    owner: str
    short: bool = True

    @property
    def key(self) -> str:
        """The dotted name of its flag: `encoder.latent-channels`; that of `from_` is `from`."""
        return key_of(self.path)

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
        return parse_value(self.type, self.info, value, self.key)


def key_of(path: tuple[str, ...]) -> str:
    """The dotted name of the flag of the option at a path."""
    return ".".join(name.rstrip("_") for name in path).replace("_", "-")


def typed(value: Any) -> str:
    """An option's value as it is typed on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(typed, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def specs(
    config: type,
    settings: Mapping[str, Any],
    path: tuple[str, ...] = (),
    owner: str = "",
    short: bool = True,
) -> Iterator[Spec]:
    """Every option of `config` and of the components that `settings` choose.

    Values come from the settings or are the defaults.
    """
    for field, kind, info in fields_of(config):
        here = (*path, field.name)
        value = settings.get(field.name, field.default)
        if not info.kind:
            yield Spec(here, kind, info, value, owner, short)
            continue
        chosen = _as_table(info.kind, value)
        name = chosen.get("name", field.default.name)
        yield Spec(here, str, info, name, owner, short)
        if name in registry().names(info.kind):
            component = registry().component(info.kind, name)
            yield from specs(component.config, chosen, here, str(component), short and info.short)


def resolve(config: type, settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """An instance of `config` from `settings`, every value checked.

    An unknown key is an error that names the nearest ones.
    """
    names = [field.name for field in dataclasses.fields(config)]
    for key in settings:
        if key not in names:
            raise OptionError(_unknown(config, key, path))
    values: dict[str, Any] = {}
    for field, kind, info in fields_of(config):
        here = (*path, field.name)
        if field.name in settings or info.kind:
            value = settings.get(field.name, field.default)
            values[field.name] = (
                _resolve_part(info, value, field.default.name, here)
                if info.kind
                else parse_value(kind, info, value, Spec(here, 0, info, 0, "").key)
            )
    try:
        return config(**values)
    except ValueError as error:
        where = ".".join(path).replace("_", "-")
        raise OptionError(f"{where}: {error}" if where else str(error)) from error


def _unknown(config: type, key: str, path: tuple[str, ...]) -> str:
    """The error message for a key that an options class does not have."""
    dotted = ".".join((*path, key)).replace("_", "-")
    for other in other_names(config):
        if other.name == key:
            value = f" = {other.value!r}" if other.value else ""
            means = other.sentence or f"write {other.option}{value}"
            return f"There is no option '{dotted}': {means}"
    names = [field.name for field in dataclasses.fields(config)]
    return f"There is no option '{dotted}'.{nearest(key, names)}"


def choose(kind: str, settings: Mapping[str, Any] | str) -> Part:
    """The part that a table of a name and options, or a name alone, chooses, ready to be built."""
    return _resolve_part(Info("", kind=kind), settings, "", ())


def settings_of(options: Any, *, local: bool = True) -> dict[str, Any]:
    """The settings that `resolve` turns into `options` again.

    They hold every option, or without `local` only options that have a meaning on any machine.
    """
    result: dict[str, Any] = {}
    kind: type = type(options)
    for field, _, info in fields_of(kind):
        if info.local and not local:
            continue
        value = getattr(options, field.name)
        if info.kind:
            result[field.name] = {"name": value.name}
            if value.options is not None:
                result[field.name] |= settings_of(value.options, local=local)
        else:
            value = value.plain if isinstance(value, Size) else value
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def without_local(config: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without the local options of `config`, which no file may set."""
    local = {field.name for field, _, info in fields_of(config) if info.local}
    return {key: value for key, value in settings.items() if key not in local}


def merge(config: type, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` overlaid by `upper`.

    Where `upper` names another component, `lower`'s options of the old one go.
    """
    result = dict(lower)
    parts: dict[str, Any] = {
        field.name: field.default for field, _, info in fields_of(config) if info.kind
    }
    for key, value in upper.items():
        if key not in parts:
            result[key] = value
            continue
        kind = parts[key].kind
        old, new = _as_table(kind, lower.get(key, parts[key])), _as_table(kind, value)
        name = new.get("name", old["name"])
        same = name == old["name"] and name in registry().names(kind)
        result[key] = (
            merge(registry().component(kind, name).config, old, new)
            if same
            else {**new, "name": name}
        )
    return result


def _as_table(kind: str, value: Any) -> dict[str, Any]:
    """The table of a part: its name and options.

    A name that no component has may stand for settings of one that a plugin knows.
    """
    if isinstance(value, Part):
        table: dict[str, Any] = {"name": value.name}
    elif isinstance(value, str):
        table = {"name": value}
    elif isinstance(value, Mapping):
        table = dict(value)
    else:
        raise OptionError(
            f"a component is chosen by its name or a table with a name, not by {value!r}"
        )
    name = table.get("name")
    if isinstance(name, str) and name not in ("", NONE, *registry().names(kind)):
        table |= registry().settings_for(kind, name) or {}
    return table


def _resolve_part(info: Info, value: Any, default: str, path: tuple[str, ...]) -> Part:
    table = _as_table(info.kind, value)
    name = table.pop("name", default)
    key = ".".join(path).replace("_", "-")
    if not isinstance(name, str) or not name:
        installed = ", ".join(registry().names(info.kind)) or "none"
        raise OptionError(f"'{key or info.kind}' names no {info.kind}; installed: {installed}")
    if name == NONE and info.optional:
        if table:
            raise OptionError(f"'{key}' is left out, so '{key}.{next(iter(table))}' has no effect")
        return Part(info.kind, NONE)
    component = registry().component(info.kind, name)
    return Part(info.kind, name, resolve(component.config, table, path), component)


def with_locations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `data = "some/folder"` spelled out.

    That is the data set that reads the folder, and its location.
    """
    result = dict(settings)
    data = result.get("data")
    table = (
        {"name": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    )
    if "name" in table:
        result["data"] = {**table, **data_table(table["name"])}
    return result


def data_table(name: str) -> dict[str, Any]:
    """The table that chooses a data set by its name, or by a location that one says it reads.

    A colon may stand behind a name, which no file then makes ambiguous.
    """
    if not isinstance(name, str):
        return {"name": name}
    if (own := name.removesuffix(":")) in registry().names("dataset"):
        return {"name": own}
    table = registry().settings_for("dataset", name)
    if table is None:
        installed = ", ".join(registry().names("dataset")) or "none"
        raise OptionError(
            f"'{name}' is neither a folder nor an installed data set, "
            f"nor anything that one reads (installed: {installed})"
        )
    return table


def typed_data_table(name: str) -> dict[str, Any]:
    """`data_table` of a typed name; `OptionError` if both a data set and a file have that name."""
    if name in registry().names("dataset") and os.path.lexists(name):
        raise OptionError(
            f"'{name}' is the name of a data set and of a folder or file here: "
            f"give ./{name} for the folder or file, or {name}: for the data set"
        )
    return data_table(name)
