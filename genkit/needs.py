"""When an option matters: what `option(…, needs=…)` says, and which flags would do nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genkit.options import Spec

# A need of what only the built encoder tells: that it has more than one level.
SEVERAL_LEVELS = "several levels"
_FORM = re.compile(r"(?P<no>!?)(?P<name>[a-z_]\w*)((?P<sign>[=>])(?P<value>.+))?")
# What a part is named that is left out.
_NONE = "none"


@dataclass(frozen=True)
class Need:
    """`NAME` is set, `NAME=VALUE`, `NAME>NUMBER`, or `!NAME`: the sibling option is not set.

    Set means above zero, true, not empty, and of a part that it is not `none`.
    """

    name: str
    no: bool = False
    sign: str = ""
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Need:
        """The need that `text` says; `ValueError` if it says none."""
        found = _FORM.fullmatch(text)
        if not found or (found["no"] and found["sign"]):
            raise ValueError(f"the need {text!r} is none of NAME, !NAME, NAME=VALUE, NAME>NUMBER")
        if found["sign"] == ">":
            float(found["value"])
        return cls(found["name"], bool(found["no"]), found["sign"] or "", found["value"] or "")

    def met(self, value: Any) -> bool:
        """Whether it is met where the sibling is `value`."""
        if self.sign == "=":
            return str(value).lower() == self.value.lower()
        if self.sign == ">":
            return float(value) > float(self.value)
        return (bool(value) and value != _NONE) != self.no

    def told(self, spec: Spec) -> str:
        """How to meet it, as one would type it: `with --encoder.weights TEXT`."""
        flag = f"--{spec.key}"
        if self.no:
            return f"without {flag}"
        if self.sign == ">" or (spec.type in (int, float) and not self.sign):
            return f"with {flag} above {self.value or 0}"
        if self.sign:
            return f"with {flag} {self.value}"
        return f"with {flag}{' NAME' if spec.info.kind else ''}"


def check_needs(needs: Sequence[str], siblings: Sequence[str], own: str) -> None:
    """`ValueError` if one of an option's `needs` names none of its siblings."""
    for text in needs:
        if text == SEVERAL_LEVELS:
            continue
        name = Need.parse(text).name
        if name not in siblings or name == own:
            raise ValueError(f"'{own}' needs '{text}', and there is no other option '{name}'")


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
