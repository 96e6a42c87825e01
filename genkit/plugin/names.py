"""Suggestions for misspelt names, and the names that other tools give to an option."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Names that share fewer letters look alike by chance, as "epochs" and "pose" do.
_ALIKE = 0.7
_MEANING = re.compile(r"([a-z_]\w*)(?:=(.+)|: (.+))?")


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the names that come near, or an empty string.

    Capital letters and leading dashes do not count.
    """
    import difflib  # Only who misspelt a name waits for it.

    plain = {each.lstrip("-").lower(): each for each in names}
    close = difflib.get_close_matches(name.lstrip("-").lower(), plain, n=3, cutoff=_ALIKE)
    return f" Did you mean {' or '.join(repr(plain[match]) for match in close)}?" if close else ""


class OtherName(NamedTuple):
    """What another tool's name of an option means here.

    A class of options has `other_names`, a dict by name. `OPTION` is the same under another name,
    `OPTION=VALUE` that option with a value, and `OPTION: SENTENCE` says what is different.
    """

    name: str
    option: str
    value: str = ""
    sentence: str = ""

    @classmethod
    def parse(cls, name: str, meaning: str) -> OtherName:
        """The meaning of a name; `ValueError` if it has another form."""
        found = _MEANING.fullmatch(meaning)
        if not found:
            raise ValueError(
                f"the other name {name!r} means {meaning!r}; it must read OPTION, OPTION=VALUE or "
                "'OPTION: SENTENCE'"
            )
        return cls(name, found[1], found[2] or "", found[3] or "")


def other_names(config: type) -> list[OtherName]:
    """The other names of the options of a class, with those of the classes it extends."""
    known: dict[str, str] = {}
    for each in reversed(config.__mro__):
        known |= vars(each).get("other_names", {})
    return [OtherName.parse(name, meaning) for name, meaning in known.items()]


def check_other_names(config: type, options: Iterable[str]) -> None:
    """`ValueError` if another name stands for none of the `options` of the class."""
    known = list(options)
    for other in other_names(config):
        if other.option not in known:
            raise ValueError(
                f"the other name '{other.name}' stands for '{other.option}', but no option is "
                "called so"
            )
