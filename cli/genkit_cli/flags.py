"""Command-line flags made from options.

Every option of the chosen components has a flag with its dotted name, and a short flag where that
is unambiguous.
"""

from __future__ import annotations

import functools
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from genkit.errors import OptionError
from genkit.plugin.conditions import Need
from genkit.plugin.registry import registry
from genkit.run.options import TokenizerRun, TrainingOptions
from genkit.settings import Spec, key_of, specs, typed
from genkit.size import Size
from genkit_cli.complete import of_option


class Flags:
    """The flags of a tree of options.

    `names` maps each option to its flag names, the dotted one first.
    """

    def __init__(self, tree: Iterable[Spec], reserved: Iterable[str] = ()) -> None:
        self.tree = list(tree)
        full = {spec.key for spec in self.tree} | set(reserved)
        suffixes = Counter(
            suffix for spec in self.tree for suffix in short_names(spec.path, spec.short)
        )
        self.names = {
            spec.key: [
                spec.key,
                *(
                    name
                    for name in short_names(spec.path, spec.short)
                    if suffixes[name] == 1 and name not in full
                ),
            ]
            for spec in self.tree
        }
        self.by_name = {name: spec for spec in self.tree for name in self.names[spec.key]}

    @functools.cached_property
    def options(self) -> list[click.Option]:
        """The flags as click options.

        Each gives a value of the option's type, or None if the flag is absent.
        """
        return [_option(spec, self.names[spec.key]) for spec in self.tree]


def chosen_flags(
    args: Sequence[str],
    lower: Sequence[Mapping[str, Any]],
    preset: str | None,
    reserved: Iterable[str],
    kind: type[TrainingOptions] = TokenizerRun,
) -> Flags:
    """The flags of the components that `args` choose for a run of a kind.

    `args` override the settings in `lower`, which override the preset.
    """
    settings: dict[str, Any] = {}
    while True:
        flags = Flags(specs(kind, kind.layered(preset, *lower, settings)), reserved)
        found = {
            spec.path: value
            for name, value in given(args).items()
            if (spec := flags.by_name.get(name)) and spec.info.kind and value is not None
        }
        chosen = nested({(*path, "name"): value for path, value in found.items()})
        for path, name in found.items():
            spec = next(spec for spec in flags.tree if spec.path == path)
            # A data set may also be given by its location, which `layered` interprets.
            unknown = spec.info.kind != "dataset" and name not in spec.choices
            if unknown and not registry().settings_for(spec.info.kind, name):
                registry().component(spec.info.kind, name)
        if chosen == settings:
            return flags
        settings = chosen


def given(args: Sequence[str]) -> dict[str, str | None]:
    """The value of each `--flag`: the text after its `=`, or else the next argument.

    The value is None if the flag comes last. The last occurrence of a flag counts.
    """
    values: dict[str, str | None] = {}
    for position, arg in enumerate(args):
        if arg == "--":
            break
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            following = args[position + 1] if position + 1 < len(args) else None
            values[name] = value if equals else following
    return values


def check_once(args: Sequence[str], flags: Flags) -> None:
    """`UsageError` if an option is given twice, under two of its names."""
    names = {
        name: (spec.key, number)
        for spec in flags.tree
        for number, known in enumerate(flags.names[spec.key])
        for name in ([known, negative(known)] if spec.type is bool else [known])
    }
    typed: dict[str, str] = {}
    for name in given(args):
        key, _ = names.get(name, ("", 0))
        before = typed.setdefault(key, name) if key else name
        if before != name and names[before] != names[name]:
            raise click.UsageError(f"--{before} and --{name} are one option: give it once.")


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested settings from values by path."""
    settings: dict[str, Any] = {}
    for path, value in values.items():
        table = settings
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = value
    return settings


def settings_from(flags: Flags, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the command line's flags give."""
    values = {}
    for spec in flags.tree:
        value = params.get(_parameter(spec))
        if value is not None:
            values[(*spec.path, "name") if spec.info.kind else spec.path] = value
    return nested(values)


def dashed(args: Sequence[str]) -> list[str]:
    """`args` with underscores in flag names turned into dashes."""
    result = []
    for arg in args:
        name, equals, value = arg.partition("=")
        result.append(name.replace("_", "-") + equals + value if arg.startswith("--") else arg)
    return result


def write_help(flags: Flags, formatter: click.HelpFormatter) -> None:
    """Write every option by owner, with its short name, help text and value."""
    owners: dict[str, list[Spec]] = {}
    for spec in flags.tree:
        owners.setdefault(
            spec.owner or ("Components" if spec.info.kind else "Training"), []
        ).append(spec)
    by_path = {spec.path: spec for spec in flags.tree}
    for owner, owned in owners.items():
        with formatter.section(owner):
            formatter.write_dl(
                [
                    _help_row(spec, flags.names[spec.key], told_needs(spec, by_path))
                    for spec in owned
                ],
                col_max=44,
            )
    formatter.buffer = [text.replace(_UNBROKEN, "-") for text in formatter.buffer]


def value_text(spec: Spec) -> str:
    """The values that an option accepts, as text: its choices or its type."""
    if spec.choices:
        return "|".join(spec.choices)
    origin = typing.get_origin(spec.type)
    if origin is tuple:
        (kind, *_) = typing.get_args(spec.type)
        choices = typing.get_origin(kind) is typing.Literal
        return f"{'|'.join(typing.get_args(kind)) if choices else _TYPES[kind]},…"
    return _TYPES[spec.type]


# Lines are not broken at this hyphen, so that names can be copied.
_UNBROKEN = "\u2011"
_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", Size: "N|HxW"}


class _Value(click.ParamType):  # type: ignore[type-arg]  # Older versions of click have no [].
    def __init__(self, spec: Spec) -> None:
        self.spec, self.name = spec, value_text(spec)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if self.spec.info.kind else self.spec.parse(value)
        except OptionError as error:
            raise click.UsageError(str(error), ctx) from error

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The values that a shell offers."""
        return of_option(self.spec, incomplete)


def _option(spec: Spec, names: Sequence[str]) -> click.Option:
    if spec.type is bool:
        switches = [f"--{name}/--{negative(name)}" for name in names]
        return click.Option([_parameter(spec), *switches], default=None, help=spec.info.help)
    return click.Option(
        [_parameter(spec), *(f"--{name}" for name in names)], type=_Value(spec), help=spec.info.help
    )


def negative(name: str) -> str:
    """The flag that switches an option off: `encoder.no-freeze`."""
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}no-{last}"


def _help_row(spec: Spec, names: Sequence[str], needs: str) -> tuple[str, str]:
    shortest = min(names, key=len)
    head, _, last = shortest.rpartition(".")
    if spec.type is bool:
        flag = f"--{head}.[no-]{last}" if head else f"--[no-]{last}"
    else:
        flag = f"--{shortest} {'NAME' if spec.info.kind else value_text(spec)}"
    choices = f": {', '.join(spec.choices)}" if spec.info.kind else ""
    value = typed(spec.value)
    said = f"{spec.info.help}{choices}{f', only {needs}' if needs else ''}"
    return flag, f"{said}{f' [{value}]' if value else ''}".replace("-", _UNBROKEN)


def _parameter(spec: Spec) -> str:
    return "option_" + "__".join(spec.path)


def short_names(path: tuple[str, ...], short: bool = True) -> list[str]:
    """The suffixes of an option's dotted name; each unique one is a short flag."""
    return names_of(path, short)[1:]


def names_of(path: tuple[str, ...], short: bool = True) -> list[str]:
    """The dotted name of the option at a path, and its suffixes if it is `short`."""
    parts = key_of(path).split(".")
    return [".".join(parts[start:]) for start in range(len(parts) if short else 1)]


def check_not_idle(
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    kind: type[TrainingOptions] = TokenizerRun,
) -> None:
    """Refuse command-line settings, `given`, that have no effect among all `settings`."""
    if idle_ones := idle(list(specs(kind, settings)), given):
        raise click.UsageError("; ".join(idle_ones))


def idle(specs: Sequence[Spec], given: Mapping[str, Any]) -> list[str]:
    """A sentence for each unmet need of the options in `given`; `specs` are all options."""
    by_path = {spec.path: spec for spec in specs}
    lacking: dict[str, list[str]] = {}
    for spec in specs:
        if _in(given, spec) and (lack := _lack(spec, by_path)):
            lacking.setdefault(lack, []).append(f"--{spec.key}")
    return [
        f"without {lack}, {', '.join(flags)} would do nothing" for lack, flags in lacking.items()
    ]


def told_needs(spec: Spec, specs: Mapping[tuple[str, ...], Spec]) -> str:
    """The condition under which an option has an effect, for the help; empty if it always has."""
    return " and ".join(f"with {need.told(sibling)}" for need, sibling in _needs(spec, specs))


def _needs(spec: Spec, specs: Mapping[tuple[str, ...], Spec]) -> Iterator[tuple[Need, Spec]]:
    for need in map(Need.parse, spec.info.needs):
        yield need, specs[(*spec.path[:-1], need.name)]


def _lack(spec: Spec, specs: Mapping[tuple[str, ...], Spec]) -> str:
    """The first unmet need of an option or of the parts that contain it."""
    for depth in range(1, len(spec.path) + 1):
        for need, sibling in _needs(specs[spec.path[:depth]], specs):
            if not need.met(sibling.value if sibling.info.kind else sibling.parse(sibling.value)):
                return need.told(sibling)
    return ""


def _in(given: Mapping[str, Any], spec: Spec) -> bool:
    """Whether settings contain an option; for a part, whether they contain its name."""
    table: Any = given
    for key in spec.path:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return not isinstance(table, Mapping) or "name" in table
