"""How many bits a prior needs for the indices of images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkit.layout import Layout
from genkit.prior import by_level


class Likelihood:
    """Sums of nats over images, by level.

    `sums`, float64, holds the number of images and the nats of each level, finest first, so that
    processes can add them up. `plain` are the bits per pixel of indices that are not modelled.
    """

    def __init__(self, layout: Layout, size: tuple[int, int], plain: float) -> None:
        self.layout, self.pixels, self.plain = layout, size[0] * size[1], plain
        self.sums = torch.zeros(1 + len(layout.grids), dtype=torch.float64)

    def add(self, nats: Tensor) -> None:
        """Add images' nats `[B, N]`."""
        parts = by_level(self.layout, nats).cpu()
        self.sums += torch.cat([torch.tensor([float(len(parts))]).double(), parts.sum(0)])

    def figures(self) -> dict[str, Any]:
        """Nats per index and bits per pixel, together and by level."""
        count, *nats = self.sums.tolist()
        bits = [each / max(1, count) / self.pixels / math.log(2) for each in nats]
        return {
            "images": int(count),
            "nats": sum(nats) / max(1, count) / len(self.layout),
            "bits_per_pixel": sum(bits),
            "plain_bits_per_pixel": self.plain,
            "levels": [
                {
                    **row,
                    "nats": each / max(1, count) / len(grid),
                    "bits_per_pixel": bit,
                }
                for row, grid, each, bit in zip(
                    self.layout.table(), self.layout.grids, nats, bits, strict=True
                )
            ],
        }
