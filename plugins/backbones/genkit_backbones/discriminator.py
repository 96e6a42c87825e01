"""A discriminator on the features of a frozen timm model."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.images import as_rgb, rgb_note
from genkit.models import RGB
from genkit_backbones import TimmDiscriminatorOptions
from genkit_backbones.models import Features, check_weights

_SLOPE = 0.2


class TimmDiscriminator(nn.Module):
    """Small trained heads that score each position of a frozen, pretrained network's features.

    After Sauer et al. 2021 (Projected GANs, arXiv 2111.01007), without their random projections.
    Pretrained features let the heads learn in hundreds of steps what convolutions learn in
    thousands. Features are normalised to a mean square of 1 over channels.
    """

    def __init__(self, options: TimmDiscriminatorOptions, channels: int) -> None:
        super().__init__()
        self.note = rgb_note(f"The discriminator {options.model}", channels)
        check_weights("discriminator", "discriminator", options.model, options.weights)
        self.features = Features(
            "discriminator", options.model, options.strides, RGB, options.weights
        )
        self.features.eval().requires_grad_(False)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(each, options.width, 1),
                nn.LeakyReLU(_SLOPE),
                nn.Conv2d(options.width, options.width, 3, padding=1),
                nn.LeakyReLU(_SLOPE),
                nn.Conv2d(options.width, 1, 1),
            )
            for each in self.features.widths
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, maps * h, w]` of images `[B, channels, H, W]` in [-1, 1].

        Those of coarser feature maps are upsampled to the size of the first, and all are stacked
        vertically.
        """
        logits: list[Tensor] = []
        for head, features in zip(self.heads, self.features(as_rgb(images)), strict=True):
            normal = F.normalize(features.float(), dim=1) * features.shape[1] ** 0.5
            seen = head(normal)
            logits.append(F.interpolate(seen, logits[0].shape[2:]) if logits else seen)
        return torch.cat(logits, dim=2)

    def train(self, mode: bool = True) -> Self:
        """Switch the heads to training mode; the features stay in eval mode."""
        super().train(mode)
        self.features.eval()
        return self
