"""Explanations of unknown flags.

A flag may belong to a component that is not chosen, be another tool's name of an option, or be
misspelt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import click

from genkit.plugin.component import Component
from genkit.plugin.names import OtherName, nearest, other_names
from genkit.plugin.options import Info, fields_of
from genkit.plugin.registry import registry
from genkit.settings import Spec, key_of
from genkit_cli.flags import Flags, given, names_of

# Components named in one message; the others are counted.
_NAMED = 3


class Option(click.Option):
    """A flag of a command that other tools call otherwise: `also=("gpu=cuda", "device_id")`.

    If it takes a component of a `kind`, a flag with such a component's name leads to it too.
    """

    def __init__(self, *args: Any, also: Sequence[str] = (), kind: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.also, self.kind = tuple(also), kind


def explain(flag: str, params: Iterable[click.Parameter]) -> str:
    """The error message for a flag that is unknown to a command with these parameters."""
    params = list(params)
    known = {name for param in params for name in param.opts if name.startswith("--")}
    meant = _fixed(flag.lstrip("-"), params)
    return _no_option(flag, meant) or f"There is no option '{flag}'.{nearest(flag, known)}"


def explain_choice(
    flag: str,
    flags: Flags,
    config: type,
    args: Sequence[str],
    params: Iterable[click.Parameter] = (),
    others: Mapping[str, type] = MappingProxyType({}),
) -> str:
    """The error message for a flag that is unknown to a command with the options of components.

    `flags` are those of the chosen components, `config` holds the parts that can be chosen, and
    `others` are the configs of other commands by name.
    """
    name, fixed = flag.lstrip("-"), list(params)
    several = [f"--{spec.key}" for spec in flags.tree if name in names_of(spec.path, spec.short)]
    if len(several) > 1:
        return f"'{flag}' is ambiguous: write {' or '.join(several)}."
    places = _Places(flags, config, args)
    if owners := places.named(name):
        return f"{flag} {places.belongs(owners)}."
    if meant := [*_fixed(name, fixed), *places.meant(name)]:
        return _no_option(flag, meant)
    if owners := places.also_named(name):
        return f"There is no option '{flag}': --{key_of(owners[0].path[-1:])} " + (
            f"{places.belongs(owners)}."
        )
    for command, other in others.items():
        if any(name in names_of(each.path, each.short) for each in _walk(other, (), (), True)):
            return f"{flag} is an option of genkit {command}."
    every = {f"--{known}" for spec in flags.tree for known in names_of(spec.path, spec.short)}
    every |= {option for param in fixed for option in param.opts if option.startswith("--")}
    return f"There is no option '{flag}'.{nearest(flag, every)}"


def _no_option(flag: str, meant: Sequence[str]) -> str:
    """The message that gives our option for another tool's flag; empty for an unknown one."""
    if not meant:
        return ""
    sentences = [each for each in meant if not each.startswith("--")]
    means = sentences[0] if sentences else f"write {' or '.join(dict.fromkeys(meant))}"
    return f"There is no option '{flag}': {means}."


def _fixed(name: str, params: Iterable[click.Parameter]) -> list[str]:
    """The command's own flags that another tool's name stands for."""
    found = []
    for param in params:
        flag = max(param.opts, key=len)
        for other, _, value in (each.partition("=") for each in getattr(param, "also", ())):
            if other.replace("_", "-") == name:
                found.append(f"{flag} {value}".strip())
        if (kind := getattr(param, "kind", "")) and name in registry().names(kind):
            found.append(f"{flag} {name}")
    return found


@dataclass(frozen=True)
class _Choice:
    """A component in the place of a part whose default is another one."""

    path: tuple[str, ...]
    component: Component
    default: str


@dataclass(frozen=True)
class _Place:
    """An option of some component, and the choices that bring it."""

    path: tuple[str, ...]
    info: Info
    short: bool
    choices: tuple[_Choice, ...]
    others: tuple[OtherName, ...]

    def meanings(self, name: str) -> list[OtherName]:
        """The other names of the option that the user may have typed."""
        around = self.path[:-1]
        return [each for each in self.others if name in names_of((*around, each.name), self.short)]


class _Places:
    """The options of all installed components, chosen or not."""

    def __init__(self, flags: Flags, config: type, args: Sequence[str]) -> None:
        self.flags, self.config, self.typed = flags, config, given(args)
        self.chosen: Mapping[tuple[str, ...], Spec] = {
            spec.path: spec for spec in flags.tree if spec.info.kind
        }

    def named(self, name: str) -> list[_Place]:
        """The places of an option of that name, those with the fewest further choices."""
        return self._fewest(
            place for place in self._all() if name in names_of(place.path, place.short)
        )

    def also_named(self, name: str) -> list[_Place]:
        """The places of an option that another tool calls so."""
        return self._fewest(place for place in self._all() if place.meanings(name))

    def meant(self, name: str) -> list[str]:
        """The chosen components' flags that another tool's name, or a component's, stands for."""
        found = []
        for place in self._all():
            if self._missing(place):
                continue
            flag = self._flag(place.path)
            found += [
                each.sentence or f"{flag} {each.value}".strip() for each in place.meanings(name)
            ]
            short = place.info.kind and place.short and place.info.short
            if short and name in registry().names(place.info.kind):
                found.append(f"{flag} {name}")
        return found

    def belongs(self, places: Sequence[_Place]) -> str:
        """The words on whose option it is, and what to add to choose that."""
        kinds: dict[str, list[str]] = {}
        for place in places:
            *_, last = place.choices
            around = [each.component for each in self._missing(place) if each is not last]
            of = "".join(f" of {each.kind} {each.name}" for each in reversed(around))
            kinds.setdefault(last.component.kind, []).append(f"{last.component.name}{of}")
        owners = " and ".join(_listed(kind, names) for kind, names in kinds.items())
        missing = self._missing(places[0])
        if typed := next((each for each in missing if self._is_typed(each)), None):
            kind, now = typed.component.kind, self.chosen[typed.path].value
            return f"belongs to {owners}, and the {kind} is {now}"
        ways = [
            " ".join(
                f"{self._flag(each.path)} {each.component.name}" for each in self._missing(place)
            )
            for place in places[:_NAMED]
        ]
        return f"belongs to {owners}: add {' or '.join(dict.fromkeys(ways))}"

    def _all(self) -> Iterator[_Place]:
        return _walk(self.config, (), (), True)

    def _fewest(self, places: Iterable[_Place]) -> list[_Place]:
        """The places that are the fewest choices away, in the order of the plugins."""
        found = [place for place in places if self._missing(place)]
        if not found:
            return []
        order = [each for plugin in registry().plugins for each in plugin.components]

        def distance(place: _Place) -> tuple[int, int]:
            return len(self._missing(place)), len(place.choices)

        least = min(map(distance, found))
        owners = {
            tuple((each.path, each.component.name) for each in place.choices): place
            for place in found
            if distance(place) == least
        }
        known = {id(component): number for number, component in enumerate(order)}
        return sorted(
            owners.values(),
            key=lambda place: known.get(id(place.choices[-1].component), len(known)),
        )

    def _missing(self, place: _Place) -> list[_Choice]:
        return [each for each in place.choices if self._now(each) != each.component.name]

    def _now(self, choice: _Choice) -> str:
        spec = self.chosen.get(choice.path)
        return str(spec.value) if spec else choice.default

    def _is_typed(self, choice: _Choice) -> bool:
        spec = self.chosen.get(choice.path)
        return spec is not None and any(name in self.typed for name in self.flags.names[spec.key])

    def _flag(self, path: tuple[str, ...]) -> str:
        """The shortest flag of an option that need not be among the chosen components."""
        key, last = key_of(path), key_of(path[-1:])
        if key in self.flags.names:
            return f"--{min(self.flags.names[key], key=len)}"
        return f"--{key if last in self.flags.by_name else last}"


def _walk(
    config: type, path: tuple[str, ...], choices: tuple[_Choice, ...], short: bool
) -> Iterator[_Place]:
    """Every option of a config and of all components that its parts can be."""
    others = other_names(config)
    for field, _, info in fields_of(config):
        here = (*path, field.name)
        own = tuple(each for each in others if each.option == field.name)
        yield _Place(here, info, short, choices, own)
        for name in registry().names(info.kind) if info.kind else ():
            component = registry().component(info.kind, name)
            if component in [each.component for each in choices]:
                continue  # A component may contain others of its kind, and so itself.
            choice = _Choice(here, component, field.default.name)
            yield from _walk(component.config, here, (*choices, choice), short and info.short)


def _listed(kind: str, names: Sequence[str]) -> str:
    """A kind and the names of its components, the first of many."""
    if len(names) == 1:
        return f"{kind} {names[0]}"
    kinds = kind if kind.endswith("s") else f"{kind}s"
    more = len(names) - _NAMED
    if more > 1:
        return f"the {kinds} {', '.join(names[:_NAMED])} and {more} more"
    return f"the {kinds} {', '.join(names[:-1])} and {names[-1]}"
