"""When an option matters: the conditions in `option(…, needs=…)`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genkit.settings import Spec

_FORM = re.compile(r"([a-z_]\w*)(?:=(.+))?")
# The name of a part that is left out, also where an option takes several names.
_NONE = ("none", ["none"], ("none",))


@dataclass(frozen=True)
class Need:
    """`NAME`: the sibling option is set, or `NAME=VALUE`.

    Set means above zero, true or not empty; a part is set if it is not `none`.
    """

    name: str
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Need:
        """The need in `text`; `ValueError` if it has another form."""
        found = _FORM.fullmatch(text)
        if not found:
            raise ValueError(f"the need {text!r} must read NAME or NAME=VALUE")
        return cls(found[1], found[2] or "")

    def met(self, value: Any) -> bool:
        """Whether the value of the sibling meets it."""
        if self.value:
            return str(value).lower() == self.value.lower()
        return bool(value) and value not in _NONE

    def told(self, spec: Spec) -> str:
        """How to meet it on the command line: `--encoder.weights`."""
        flag = f"--{spec.key}"
        if self.value:
            return f"{flag} {self.value}"
        if spec.type in (int, float):
            return f"{flag} above 0"
        return f"{flag}{' NAME' if spec.info.kind else ''}"


def check_needs(needs: Sequence[str], siblings: Sequence[str], own: str) -> None:
    """`ValueError` if one of an option's `needs` names none of its siblings."""
    for text in needs:
        name = Need.parse(text).name
        if name not in siblings or name == own:
            raise ValueError(f"'{own}' needs '{text}', but no other option is called '{name}'")
