"""VQGAN's decoder (Esser et al. 2021, arXiv 2012.09841, appendix)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genkit import Level
from genkit_vqgan import DecoderOptions
from genkit_vqgan.blocks import (
    colours,
    conv,
    double,
    enlarged,
    middle,
    seen_levels,
    stage,
    strides_up,
    width_at,
)


class Decoder(nn.Module):
    """C3, block, attention, block, then residual blocks and 2x upsampling per resolution.

    Group norm, SiLU and C3 output the colours. The decoder reads the quantized latents of the
    finest level, or of all levels, upsampled to the finest and concatenated.
    """

    def __init__(self, options: DecoderOptions, levels: Sequence[Level], channels: int) -> None:
        super().__init__()
        self.seen, latent = seen_levels(options.sees, levels)
        strides = strides_up(levels[0].stride, options.patch)
        width = width_at(options.width, strides[0])
        self.enter = nn.Sequential(
            conv(latent, latent, 1) if options.mix else nn.Identity(),
            conv(latent, width, 3),
            middle(width),
        )
        way: list[nn.Module] = []
        for stride in strides:
            out = width_at(options.width, stride)
            way.append(stage(width, out, options.blocks, stride in options.attention_strides))
            way += [double(out, out)] if stride > options.patch else []
            width = out
        self.grow = nn.Sequential(*way)
        self.leave = colours(width, options.patch, channels)

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from quantized latents `[B, C, h, w]`, finest first."""
        return self.leave(self.grow(self.enter(enlarged(latents[: self.seen]))))
