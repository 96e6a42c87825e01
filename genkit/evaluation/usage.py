"""Codebook usage, counted exactly over all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genkit.distributed import all_sum
from genkit.errors import OptionError

_MOST_CODES = 2**26


class CodeCounts:
    """Counts of every code of every level; `codebooks` holds (number, size) per level."""

    def __init__(
        self, codebooks: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> None:
        check_countable(codebooks)
        self.counts = [torch.zeros(shape, dtype=torch.int64, device=device) for shape in codebooks]

    def add(self, indices: Sequence[Tensor]) -> None:
        """Count the indices of a batch: one tensor of any shape per level."""
        for counts, level in zip(self.counts, indices, strict=True):
            count_into(counts, level)

    def totals(self) -> list[Tensor]:
        """The counts int64 `[Q, K]` of every level, summed over all processes."""
        return [all_sum(counts.clone()).cpu() for counts in self.counts]

    def summary(self) -> list[dict[str, Any]]:
        """`code_use` of the totals, per level."""
        return [code_use(counts) for counts in self.totals()]


def check_countable(codebooks: Sequence[tuple[int, int]]) -> None:
    """Raise `OptionError` if a level has too many codes to count."""
    if (most := max(count * size for count, size in codebooks)) > _MOST_CODES:
        raise OptionError(
            f"codebooks of {most} codes are too large: at most {_MOST_CODES} can be counted"
        )


def places(indices: Tensor, codebooks: int, size: int) -> Tensor:
    """Positions of indices in flat counts `[Q K]`; with several codebooks, indices are `[…, Q]`."""
    if codebooks == 1:
        return indices.flatten()
    return (indices + size * torch.arange(codebooks, device=indices.device)).flatten()


def count_into(counts: Tensor, indices: Tensor) -> None:
    """Add the occurrences of each code in `indices` to `counts` `[Q, K]`."""
    flat = places(indices, *counts.shape)
    # Unlike bincount, this does not wait for the GPU.
    counts.view(-1).index_add_(0, flat, counts.new_ones(()).expand(len(flat)))


def code_use(counts: Tensor) -> dict[str, Any]:
    """`codebook_size`, `active` codes, `usage` and `perplexity` of counts `[Q, K]`.

    Usage is the share of active codes; perplexity is exp of the entropy of use. With several
    codebooks, active codes are summed, entropies are averaged, and `codebooks` is their number.
    """
    codebooks, size = counts.shape
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(1).mean()
    active = int((counts > 0).sum())
    return {
        **({"codebooks": codebooks} if codebooks > 1 else {}),
        "codebook_size": size,
        "active": active,
        "usage": active / (codebooks * size),
        "perplexity": float(entropy.exp()) if active else 0.0,
    }
