"""Finding a tokenizer among the tensors of a file, and renaming its parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from genkit import GenkitError

# Every family here begins with this convolution.
_FIRST = "encoder.conv_in.weight"
_PARTS = re.compile(r"(encoder|decoder|quantize|quant_conv|post_quant_conv)\.")
# A file may hold several states; averaged weights count first.
_PREFERRED = ("ema.", "model.", "state_dict.", "")


def prefix_of(names: Iterable[str]) -> str | None:
    """The prefix of the names of a tokenizer's tensors, or None without a tokenizer."""
    found = [
        name.removesuffix(_FIRST)
        for name in names
        if name.endswith(_FIRST) and not re.search(r"(^|\.)(loss|discriminator)\.", name)
    ]
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]

    def rank(prefix: str) -> tuple[int, int]:
        starts = [prefix.startswith(each) for each in _PREFERRED]
        return starts.index(True), len(prefix)

    return min(found, key=rank, default=None)


def tokenizer_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a tokenizer's own tensors, without what stands before them, and in the file."""
    names = list(names)
    prefix = prefix_of(names)
    if prefix is None:
        return {}
    inner = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {short: name for short, name in inner.items() if _PARTS.match(short)}


def averaged(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
    """The names of moving averages where the file has them: `model_ema.` and the name undotted."""
    prefix = prefix_of(tensors) or ""
    better = {short: f"{prefix}model_ema.{short.replace('.', '')}" for short in names}
    return {
        short: better[short] if better[short] in tensors else name for short, name in names.items()
    }


def renamed(tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors under new names; each rule is a regular expression and its replacement."""
    result = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def numbered(names: Iterable[str], pattern: str) -> int:
    """How many numbers from 0 the first group of a pattern takes among names."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    if found != set(range(len(found))):
        raise GenkitError(f"the file lacks tensors: the numbers of {pattern!r} are {sorted(found)}")
    return len(found)
