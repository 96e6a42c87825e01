"""The decoder that mirrors AREN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Level
from genkit_avqvae import MirrorOptions
from genkit_avqvae.blocks import Unfold, conv, doublings, widths_between


class Mirror(nn.Module):
    """C3, then identity blocks and a 2x upsampling per downsampling of the finest level, then C1.

    The last convolution outputs the colours. The decoder reads the quantized latents of the finest
    level (as in the paper) or of all levels, upsampled to the finest and concatenated (as in
    VQ-VAE-2, Razavi et al. 2019).
    """

    def __init__(self, options: MirrorOptions, levels: Sequence[Level], channels: int) -> None:
        super().__init__()
        finest = levels[0].stride
        if finest & (finest - 1):
            raise ValueError(f"the finest stride must be a power of two, not {finest}")
        self.seen = 1 if options.sees == "finest" else len(levels)
        patch = options.patch
        if patch > finest:
            raise ValueError(
                f"patches of {patch} pixels are larger than the finest stride, {finest}"
            )
        widths = widths_between(options.width, patch, finest)[::-1]
        self.enter = conv(sum(level.channels for level in levels[: self.seen]), widths[0], 3)
        self.grow = doublings(widths, options.blocks, options.norm)
        self.leave = conv(widths[-1], channels * patch**2, 1)
        self.unfold = Unfold(patch) if patch > 1 else nn.Identity()

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from quantized latents `[B, C, h, w]`, finest first."""
        size = latents[0].shape[2:]
        seen = [x if x.shape[2:] == size else F.interpolate(x, size) for x in latents[: self.seen]]
        return self.unfold(self.leave(self.grow(self.enter(torch.cat(seen, dim=1)))))
