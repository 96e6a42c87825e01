"""VQGAN's decoder (Esser et al. 2021, arXiv 2012.09841, appendix)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genkit import Level
from genkit_vqgan import DecoderOptions
from genkit_vqgan.blocks import (
    Adaptive,
    colours,
    conv,
    double,
    enlarged,
    middle,
    seen_levels,
    shuffle,
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
        self.unit = options.image_range == "unit"
        strides = strides_up(levels[0].stride, options.patch)
        width = width_at(options.width, strides[0])
        self.enter = nn.Sequential(
            conv(latent, latent, 1) if options.mix else nn.Identity(),
            conv(latent, width, 3),
            middle(width, options),
        )
        larger = shuffle if options.upsample == "shuffle" else double
        self.grow, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for stride in strides:
            out = width_at(options.width, stride)
            if options.adaptive:
                self.adaptive.append(Adaptive(width, latent, options))
            attention = stride in options.attention_strides
            self.grow.append(stage(width, out, options.blocks, attention, options))
            if stride > options.patch:
                self.grow.append(larger(out, out))
            width = out
        self.leave = colours(width, options.patch, channels, options)

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from quantized latents `[B, C, h, w]`, finest first."""
        seen = enlarged(latents[: self.seen])
        x = self.enter(seen)
        for number, layer in enumerate(self.grow):
            # Blocks and upsampling take turns.
            if self.adaptive and not number % 2:
                x = self.adaptive[number // 2](x, seen)
            x = layer(x)
        images: Tensor = self.leave(x)
        return 2 * images - 1 if self.unit else images
