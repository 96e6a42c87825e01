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
    """Counts of every code of every level; `summary` adds up all processes'."""

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        if (largest := max(codebook_sizes)) > _MOST_CODES:
            raise OptionError(
                f"a codebook of {largest} codes is too large, at most {_MOST_CODES} can be counted"
            )
        self.counts = [
            torch.zeros(size, dtype=torch.int64, device=device) for size in codebook_sizes
        ]

    def add(self, indices: Sequence[Tensor]) -> None:
        """Count the indices of a batch, any shape, a tensor a level."""
        for counts, level in zip(self.counts, indices, strict=True):
            counts += torch.bincount(level.flatten(), minlength=len(counts))

    def summary(self) -> list[dict[str, Any]]:
        """Per level `codebook_size`, `active` codes, `usage` and `perplexity`.

        Usage is the share of active codes, perplexity is exp of the entropy of use.
        """
        levels = []
        for counts in self.counts:
            total = all_sum(counts.clone()).cpu().double()
            share = total / total.sum().clamp(min=1)
            entropy = -(share * share.clamp(min=1e-300).log()).sum()
            active = int((total > 0).sum())
            size = len(total)
            levels.append(
                {
                    "codebook_size": size,
                    "active": active,
                    "usage": active / size,
                    "perplexity": float(entropy.exp()) if active else 0.0,
                }
            )
        return levels
