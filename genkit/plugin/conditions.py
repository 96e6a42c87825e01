"""When an option matters: what `option(…, needs=…)` says, and which flags would do nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genkit.settings import Spec

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
