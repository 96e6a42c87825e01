"""Discriminators at several scales (Wang et al. 2018, pix2pixHD, arXiv 1711.11585, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_discriminators import MultiscaleOptions


class Multiscale(nn.Module):
    """One discriminator for the image, one for the image at half the size, and so on.

    Their logits are upsampled to the size of the first ones and stacked vertically. A loss averaged
    over logits is therefore the mean of the scales' losses; the paper uses their sum.
    """

    def __init__(self, options: MultiscaleOptions, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(options.each.build(channels) for _ in range(options.scales))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, scales * h, w]` of images `[B, channels, H, W]`."""
        logits: list[Tensor] = []
        for judge in self.scales:
            if logits:
                images = F.avg_pool2d(images, 3, 2, padding=1, count_include_pad=False)
            seen = judge(images)
            logits.append(F.interpolate(seen, logits[0].shape[2:]) if logits else seen)
        return torch.cat(logits, dim=2)
