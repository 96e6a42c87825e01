"""A decoder of residual blocks initialised as identities."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genkit import Level
from genkit_vqgan import ResidualOptions
from genkit_vqgan.blocks import (
    Block,
    colours,
    conv,
    double,
    enlarged,
    seen_levels,
    shuffle,
    strides_up,
    width_at,
)


class Residual(nn.Module):
    """C3, then residual blocks and 2x upsampling per resolution, then group norm, SiLU and C3.

    The last convolution of each block starts at zero, so that blocks initially are identities
    (Zhang et al. 2019, Fixup, arXiv 1901.09321). The decoder reads the quantized latents of the
    finest level, or of all levels, upsampled to the finest and concatenated.
    """

    def __init__(self, options: ResidualOptions, levels: Sequence[Level], channels: int) -> None:
        super().__init__()
        self.seen, latent = seen_levels(options.sees, levels)
        strides = strides_up(levels[0].stride, options.patch)
        width = width_at(options.width, strides[0])
        self.enter = conv(latent, width, 3)
        larger = shuffle if options.upsample == "shuffle" else double
        way: list[nn.Module] = []
        for stride in strides:
            out = width_at(options.width, stride)
            way += [larger(width, out)] if stride < strides[0] else []
            way += [Block(out, out, still=True) for _ in range(options.blocks)]
            width = out
        self.grow = nn.Sequential(*way)
        self.leave = colours(width, options.patch, channels)

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from quantized latents `[B, C, h, w]`, finest first."""
        return self.leave(self.grow(self.enter(enlarged(latents[: self.seen]))))
