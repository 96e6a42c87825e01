"""PatchGAN (Isola et al. 2017, arXiv 1611.07004), also with the sizes of "Attentive VQ-VAE"."""

from __future__ import annotations

import math

from torch import Tensor, nn

from genkit.ops import GroupNorm
from genkit_discriminators import PatchGANOptions


class PatchGAN(nn.Module):
    """3x3 convolutions with leaky ReLUs; each logit scores the patch in its receptive field."""

    def __init__(self, options: PatchGANOptions, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in zip(options.width, options.strides, strict=False):
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1),
                _norm(options.norm, width),
                nn.LeakyReLU(0.2),
            ]
            if options.dropout:
                layers.append(nn.Dropout2d(options.dropout))
            channels = width
        layers.append(nn.Conv2d(channels, 1, 3, options.strides[-1], padding=1))
        if options.norm_logits:
            layers.append(_norm("batch", 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, h, w]` of images `[B, channels, H, W]`."""
        return self.layers(images)


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    # About 16 channels per group; the number of groups must divide the channels.
    return (
        GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
        if name == "group"
        else nn.Identity()
    )
