"""The paper's fusion of a quantized coarser level into the next finer one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkit import Level
from genkit_avqvae import HierarchicalOptions
from genkit_avqvae.blocks import conv, doublings


class Hierarchical(nn.Module):
    """RZ2 + concatenation + 1x1: z = C1(cat[latents, Up(Id(… coarser))])."""

    def __init__(self, options: HierarchicalOptions, level: Level, coarser: Level) -> None:
        super().__init__()
        width = options.width or coarser.channels
        times = (coarser.stride // level.stride).bit_length() - 1
        if level.stride << times != coarser.stride:
            raise ValueError(
                "the ratio of the levels' strides must be a power of two; "
                f"the strides are {level.stride} and {coarser.stride}"
            )
        narrow = [conv(coarser.channels, width, 1)] if width != coarser.channels else []
        self.resize = nn.Sequential(
            *narrow, doublings([width] * (times + 1), options.blocks, options.norm)
        )
        self.mix = conv(level.channels + width, level.channels, 1)

    def forward(self, latents: Tensor, coarser: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` mixed with the coarser level's quantized `[B, C2, h2, w2]`."""
        return self.mix(torch.cat([latents, self.resize(coarser)], dim=1))
