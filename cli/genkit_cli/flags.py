"""Flags from options.

Every option of the chosen components has a flag of its dotted name, and a short one where that is
unambiguous.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from genkit.errors import OptionError
from genkit.models import RGB
from genkit.plugin.conditions import SEVERAL_LEVELS, Need
from genkit.plugin.names import nearest
from genkit.plugin.registry import registry
from genkit.run.options import TokenizerRun, layered
from genkit.settings import Spec, specs

if TYPE_CHECKING:
    from genkit.settings import Spec


class Flags:
    """The flags of a tree of options.

    `names` maps each option to its flag names, the dotted one first.
    """

    def __init__(self, tree: Iterable[Spec], reserved: Iterable[str] = ()) -> None:
        self.tree = list(tree)
        full = {spec.key for spec in self.tree} | set(reserved)
        suffixes = Counter(suffix for spec in self.tree for suffix in _suffixes(spec.key))
        self.names = {
            spec.key: [
                spec.key,
                *(name for name in _suffixes(spec.key) if suffixes[name] == 1 and name not in full),
            ]
            for spec in self.tree
        }
        self.by_name = {name: spec for spec in self.tree for name in self.names[spec.key]}

    def explain(self, flag: str) -> str:
        """What to say of a flag that is none."""
        name = flag.lstrip("-")
        several = [f"--{spec.key}" for spec in self.tree if name in _suffixes(spec.key)]
        if len(several) > 1:
            return f"'{flag}' is ambiguous: write {' or '.join(several)}."
        every = {
            f"--{known}"
            for spec in self.tree
            for known in [*self.names[spec.key], *_suffixes(spec.key)]
        }
        return f"There is no option '{flag}'.{nearest(flag, every)}"

    @functools.cached_property
    def options(self) -> list[click.Option]:
        """The flags as click knows them.

        Each passes its value on as the option's type, or None if it is not given.
        """
        return [_option(spec, self.names[spec.key]) for spec in self.tree]


def chosen_flags(
    args: Sequence[str],
    lower: Sequence[Mapping[str, Any]],
    preset: str | None,
    reserved: Iterable[str],
) -> Flags:
    """The flags of the components that `args` choose.

    What `args` choose comes before the settings in `lower`, these before the preset.
    """
    settings: dict[str, Any] = {}
    while True:
        flags = Flags(specs(TokenizerRun, layered(preset, *lower, settings)), reserved)
        found = {
            spec.path: value
            for name, value in given(args).items()
            if (spec := flags.by_name.get(name)) and spec.info.kind and value is not None
        }
        chosen = nested({(*path, "name"): value for path, value in found.items()})
        for path, name in found.items():
            spec = next(spec for spec in flags.tree if spec.path == path)
            # A data set may also be given by a location, which `layered` looks into.
            if spec.info.kind != "dataset" and name not in spec.choices:
                registry().component(spec.info.kind, name)
        if chosen == settings:
            return flags
        settings = chosen


def given(args: Sequence[str]) -> dict[str, str | None]:
    """The value of each `--flag`, which follows it or stands behind its `=`.

    It is None where there is none. Of a flag that is given twice the last one counts.
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


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Settings from values under their paths."""
    settings: dict[str, Any] = {}
    for path, value in values.items():
        table = settings
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = value
    return settings


def settings_from(flags: Flags, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the flags given on the command line stand for."""
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
    """Every option by owner, with its short name, what it is for and its value."""
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


def value_text(spec: Spec) -> str:
    """What an option takes: its choices or its type."""
    if spec.choices:
        return "|".join(spec.choices)
    origin = typing.get_origin(spec.type)
    if origin is tuple:
        return f"{_TYPES[typing.get_args(spec.type)[0]]},…"
    return _TYPES[spec.type]


def shown(value: Any) -> str:
    """An option's value as one would type it."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


class _Value(click.ParamType):  # type: ignore[type-arg]  # Older versions of click have no [].
    def __init__(self, spec: Spec) -> None:
        self.spec, self.name = spec, value_text(spec)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if self.spec.info.kind else self.spec.parse(value)
        except OptionError as error:
            raise click.UsageError(str(error), ctx) from error


def _option(spec: Spec, names: Sequence[str]) -> click.Option:
    if spec.type is bool:
        negative = {
            name: ".".join([*(parts := name.split("."))[:-1], f"no-{parts[-1]}"]) for name in names
        }
        switches = [f"--{name}/--{negative[name]}" for name in names]
        return click.Option([_parameter(spec), *switches], default=None, help=spec.info.help)
    return click.Option(
        [_parameter(spec), *(f"--{name}" for name in names)], type=_Value(spec), help=spec.info.help
    )


def _help_row(spec: Spec, names: Sequence[str], needs: str) -> tuple[str, str]:
    shortest = min(names, key=len)
    head, _, last = shortest.rpartition(".")
    if spec.type is bool:
        flag = f"--{head}.[no-]{last}" if head else f"--[no-]{last}"
    else:
        flag = f"--{shortest} {'NAME' if spec.info.kind else value_text(spec)}"
    choices = f": {', '.join(spec.choices)}" if spec.info.kind else ""
    value = shown(spec.value)
    said = f"{spec.info.help}{choices}{f', only {needs}' if needs else ''}"
    return flag, f"{said}{f' [{value}]' if value else ''}"


def _parameter(spec: Spec) -> str:
    return "option_" + "__".join(spec.path)


def _suffixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def check_not_idle(
    run: TokenizerRun, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Refuse the settings in `given`, a command line's, that do nothing among all `settings`."""

    @functools.cache
    def several_levels() -> bool:
        return len(run.encoder.build(RGB).levels) > 1

    told = idle(list(specs(TokenizerRun, settings)), given, several_levels)
    names = [run.optimizer, *([run.discriminator_optimizer] if run.discriminator else [])]
    if "betas" in given and not any(map(_has_betas, names)):
        told.append(
            f"--optimizer {' and '.join(names)} does not take two betas: --betas would do nothing"
        )
    if told:
        raise click.UsageError("; ".join(told))


def _has_betas(optimizer: str) -> bool:
    """Whether an optimizer takes betas; one that there is not is told by training."""
    if optimizer in ("muon", "adam", "adamw"):
        return True
    from timm.optim import get_optimizer_info, list_optimizers

    if optimizer not in list_optimizers():
        return True
    options = inspect.signature(get_optimizer_info(optimizer).opt_class).parameters
    return "betas" in options and len(options["betas"].default) == 2


def idle(
    specs: Sequence[Spec], given: Mapping[str, Any], several_levels: Callable[[], bool]
) -> list[str]:
    """What to say of the options in `given` that would do nothing among all others, `specs`.

    `several_levels` is asked only where it matters. One sentence tells all that lack the same.
    """
    by_path = {spec.path: spec for spec in specs}
    lacking: dict[str, list[str]] = {}
    for spec in specs:
        if _in(given, spec) and (lack := _lack(spec, by_path, several_levels)):
            lacking.setdefault(lack, []).append(f"--{spec.key}")
    return [f"{lack}, {', '.join(flags)} would do nothing" for lack, flags in lacking.items()]


def told_needs(spec: Spec, specs: Mapping[tuple[str, ...], Spec]) -> str:
    """When an option matters, for the help; nothing if it always does."""
    said = []
    for need, sibling in _needs(spec, specs):
        said.append(need.told(sibling) if need and sibling else f"with {SEVERAL_LEVELS}")
    return " and ".join(said)


def _needs(
    spec: Spec, specs: Mapping[tuple[str, ...], Spec]
) -> Iterator[tuple[Need, Spec] | tuple[None, None]]:
    for text in spec.info.needs:
        if text == SEVERAL_LEVELS:
            yield None, None
        else:
            need = Need.parse(text)
            yield need, specs[(*spec.path[:-1], need.name)]


def _lack(
    spec: Spec, specs: Mapping[tuple[str, ...], Spec], several_levels: Callable[[], bool]
) -> str:
    """The first thing that an option lacks, or one of the parts that it is an option of."""
    for depth in range(1, len(spec.path) + 1):
        for need, sibling in _needs(specs[spec.path[:depth]], specs):
            if not need or not sibling:
                if not several_levels():
                    return "with one level of latents"
                continue
            value = sibling.value if sibling.info.kind else sibling.parse(sibling.value)
            if not need.met(value):
                told = need.told(sibling)
                return (
                    told.replace("without", "with", 1)
                    if need.no
                    else told.replace("with", "without", 1)
                )
    return ""


def _in(given: Mapping[str, Any], spec: Spec) -> bool:
    """Whether settings hold an option; a part is where its name is."""
    table: Any = given
    for key in spec.path:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return not isinstance(table, Mapping) or "name" in table
