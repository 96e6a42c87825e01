"""How much of each codebook is used, counted exactly over everything that was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genkit.distributed import all_sum
from genkit.errors import OptionError

_MOST_CODES = 2**26


class CodeCounts:
    """Counts of every code of every level."""

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        check_countable(codebook_sizes)
        self.counts = [
            torch.zeros(size, dtype=torch.int64, device=device) for size in codebook_sizes
        ]

    def add(self, indices: Sequence[Tensor]) -> None:
        """Count the indices of a batch, any shape, a tensor a level."""
        for counts, level in zip(self.counts, indices, strict=True):
            count_into(counts, level)

    def totals(self) -> list[Tensor]:
        """The counts int64 `[K]` of every level, added up over all processes."""
        return [all_sum(counts.clone()).cpu() for counts in self.counts]

    def summary(self) -> list[dict[str, Any]]:
        """`code_use` of the totals, a level each."""
        return [code_use(counts) for counts in self.totals()]


def check_countable(codebook_sizes: Sequence[int]) -> None:
    """`OptionError` if a codebook has more codes than can be counted."""
    if (largest := max(codebook_sizes)) > _MOST_CODES:
        raise OptionError(
            f"a codebook of {largest} codes is too large, at most {_MOST_CODES} can be counted"
        )


def count_into(counts: Tensor, indices: Tensor) -> None:
    """Add how often each code occurs in `indices`, of any shape, to `counts` `[K]`."""
    flat = indices.flatten()
    # Unlike bincount, this never waits for a GPU.
    counts.index_add_(0, flat, counts.new_ones(()).expand(len(flat)))


def code_use(counts: Tensor) -> dict[str, Any]:
    """`codebook_size`, `active` codes, `usage` and `perplexity` of counts `[K]`.

    Usage is the share of active codes, perplexity is exp of the entropy of use.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum()
    active = int((counts > 0).sum())
    return {
        "codebook_size": len(counts),
        "active": active,
        "usage": active / len(counts),
        "perplexity": float(entropy.exp()) if active else 0.0,
    }
