"""timm's models as encoders."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from genkit import Level
from genkit_backbones import TimmOptions
from genkit_backbones.models import Features


class Timm(nn.Module):
    """The feature maps of a timm model, each projected to latents by a 1x1 convolution."""

    def __init__(self, options: TimmOptions, channels: int) -> None:
        super().__init__()
        strides = options.strides[: options.levels]
        self.levels = [
            Level(index, options.latent_channels, stride) for index, stride in enumerate(strides)
        ]
        self.features = Features(
            "encoder", options.model, strides, channels, options.weights, options.normalize
        )
        self.frozen = options.freeze
        if self.frozen:
            self.features.requires_grad_(False)
        self.projections = nn.ModuleList(
            nn.Conv2d(width, options.latent_channels, 1) for width in self.features.widths
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """The latents of each level, finest first, of images `[B, channels, H, W]`."""
        features = self.features(images)
        return [project(each) for project, each in zip(self.projections, features, strict=True)]

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but keep a frozen model in eval mode."""
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self
