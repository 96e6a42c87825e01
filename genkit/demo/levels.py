"""The contributions of a tokenizer's levels and codebooks to an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from genkit.tokenizer import Tokenizer


class Share(NamedTuple):
    """The levels or codebooks that are decoded, in words, and their images `[B, C, H, W]`."""

    name: str
    images: Tensor


def shares(tokenizer: Tokenizer, indices: list[Tensor]) -> Iterator[Share]:
    """Images decoded from some levels or codebooks only; none for a single codebook.

    Each level alone comes first, coarsest level first. Then levels are added one after the other
    from the coarsest on, and within a level its codebooks: 1, 2, 4 and so on. The latents of a
    level that is left out are replaced by their mean over the image; so is the part of a level's
    latents that codebooks add, if the latents are a sum of such parts as in residual quantization.
    """
    whole = tokenizer.dequantize(indices)
    for counts, name in _chosen([count for count, _ in tokenizer.codebooks]).items():
        latents = [
            _with(tokenizer, indices, whole, level, count) for level, count in enumerate(counts)
        ]
        yield Share(name, tokenizer.decode_latents(latents))


def definition(tokenizer: Tokenizer) -> str:
    """Sentences that explain the pictures of `shares`."""
    codebooks = [count for count, _ in tokenizer.codebooks]
    if codebooks == [1]:
        return "This model has one level with one codebook, which contributes the whole image."
    text = (
        "Each picture is decoded from the levels or codebooks in its caption; level 0 is the "
        "finest. The latents of the other levels are replaced by their mean over the image."
    )
    if max(codebooks) > 1:
        text += " What a codebook that is left out adds to them is replaced by its mean, too."
    return text


def _chosen(codebooks: Sequence[int]) -> dict[tuple[int, ...], str]:
    """The codebooks of each level, finest first, that are decoded together, with their names."""
    levels = range(len(codebooks))
    chosen = {
        tuple(codebooks[each] * (each == level) for each in levels): f"level {level} alone"
        for level in reversed(levels)
    }
    for level in reversed(levels):
        above = codebooks[level + 1 :]
        for count in _doubling(codebooks[level]):
            counts = (*[0] * level, count, *above)
            chosen.setdefault(counts, _name(level, count, codebooks))
    chosen.pop(tuple(codebooks), None)
    return chosen


def _doubling(most: int) -> list[int]:
    """1, 2, 4 and so on, and at last `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _name(level: int, count: int, codebooks: Sequence[int]) -> str:
    """The first codebooks of a level in words, with all coarser levels."""
    whole = list(range(level + (count < codebooks[level]), len(codebooks)))[::-1]
    names = [f"level{'s' * (len(whole) > 1)} {' + '.join(map(str, whole))}"] if whole else []
    if count < codebooks[level]:
        names.append(f"{count} of {codebooks[level]} codebooks of level {level}")
    return " + ".join(names)


def _with(
    tokenizer: Tokenizer, indices: list[Tensor], whole: list[Tensor], level: int, count: int
) -> Tensor:
    """The latents of a level's first codebooks, with the mean of the others."""
    latents = whole[level]
    mean = latents.mean((2, 3), keepdim=True)
    if not count:
        return mean.expand_as(latents)
    if count == tokenizer.codebooks[level][0]:
        return latents
    fewer = [each.clone() for each in indices]
    fewer[level][..., count:] = 0
    # One code in place of the others moves all places alike, which the two means undo.
    moved = tokenizer.dequantize(fewer)[level]
    return moved - moved.mean((2, 3), keepdim=True) + mean
