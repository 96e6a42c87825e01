"""Reconstructions of held-out images, and pictures of a tokenizer's codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genkit.data.reading import batches
from genkit.evaluation.metrics import psnr
from genkit.evaluation.usage import CodeCounts
from genkit.images import Pixels, shown, to_uint8
from genkit.interfaces import Split
from genkit.tokenizer import Tokenizer

# Codes of a level that are decoded, the most used first.
_CODES = 256
# Rows and columns of a decoded code at the coarsest level.
_EXTENT = 2


class Looks(NamedTuple):
    """Held-out images `[N, H, W, C]`, their reconstructions, names and PSNR, worst first.

    `indices` holds the indices of every level, `counts` how often each code occurs among them.
    """

    originals: Pixels
    made: Pixels
    names: list[str]
    decibels: list[float]
    indices: list[Tensor]
    counts: list[Tensor]


class Codes(NamedTuple):
    """Codes of a level, the most used first: their numbers, counts, and pictures `[N, H, W, C]`."""

    numbers: list[int]
    counts: list[int]
    pictures: Pixels


@torch.no_grad()
def look(tokenizer: Tokenizer, images: Split, count: int, batch_size: int = 8) -> Looks:
    """Reconstruct the first `count` images of a split."""
    device = next(tokenizer.parameters()).device
    codes = CodeCounts(tokenizer.codebooks, device)
    originals, made, numbers, decibels = [], [], list[int](), list[float]()
    indices: list[list[Tensor]] = [[] for _ in tokenizer.levels]
    for places, batch in batches(images, count, batch_size, device):
        output = tokenizer(batch)
        codes.add(output.indices)
        numbers += places
        decibels += psnr(batch, output.images).tolist()
        originals.append(shown(to_uint8(batch)))
        made.append(shown(to_uint8(output.images)))
        for level, found in zip(indices, output.indices, strict=True):
            level.append(found.cpu())
    order = np.argsort(decibels, kind="stable")
    return Looks(
        np.concatenate(originals)[order],
        np.concatenate(made)[order],
        [images.name(numbers[place]) for place in order],
        [decibels[place] for place in order],
        [torch.cat(level)[torch.from_numpy(order)] for level in indices],
        codes.totals(),
    )


def decoded_codes(tokenizer: Tokenizer, counts: Sequence[Tensor]) -> Iterator[Codes]:
    """Pictures of the codes of every level: images that have one code at all places of that level.

    The other levels, and a level's other codebooks, have their most used code. `counts` `[Q, K]`
    are those of `Looks`.
    """
    device = next(tokenizer.parameters()).device
    side = tokenizer.levels[-1].stride * _EXTENT
    grids = [level.grid(side, side) for level in tokenizer.levels]
    usual = [
        each.argmax(1).expand(1, *grid, len(each)).squeeze(-1).to(device)
        for each, grid in zip(counts, grids, strict=True)
    ]
    for level, each in enumerate(counts):
        order = each[0].argsort(descending=True, stable=True)[:_CODES]
        order = order[each[0][order] > 0]
        pictures = []
        for codes in order.to(device).split(64):
            indices = [one.repeat_interleave(len(codes), 0) for one in usual]
            place = indices[level] if len(each) == 1 else indices[level][..., 0]
            place.copy_(codes[:, None, None].expand_as(place))
            pictures.append(shown(to_uint8(tokenizer.decode(indices))))
        yield Codes(order.tolist(), each[0][order].tolist(), np.concatenate(pictures))
