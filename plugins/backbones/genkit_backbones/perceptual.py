"""Perceptual losses on the features of timm models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.images import as_rgb, rgb_note
from genkit.models import RGB
from genkit_backbones import TimmPerceptualOptions
from genkit_backbones.models import Features, check_weights


class TimmPerceptual(nn.Module):
    """Distance between the features of reconstructions and images, averaged over feature maps.

    `cosine` is |f - g|^2 of features normalised over their channels (Zhang et al. 2018,
    arXiv 1801.03924, Eq. 1, with all weights 1), averaged over positions. `l1` and `l2` are
    averaged over positions and channels.
    """

    def __init__(self, options: TimmPerceptualOptions, channels: int) -> None:
        super().__init__()
        self.note = rgb_note(f"The perceptual loss {options.model}", channels)
        check_weights("perceptual loss", "perceptual", options.model, options.weights)
        self.features = Features("perceptual", options.model, options.strides, RGB, options.weights)
        self.distance = options.distance

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar, given images `[B, channels, H, W]` in [-1, 1] and their reconstructions."""
        with torch.no_grad():
            wanted = self.features(as_rgb(images))
        pairs = zip(self.features(as_rgb(reconstructions)), wanted, strict=True)
        return torch.stack([self._between(f.float(), g.float()) for f, g in pairs]).mean()

    def _between(self, f: Tensor, g: Tensor) -> Tensor:
        if self.distance == "cosine":
            return (F.normalize(f, dim=1) - F.normalize(g, dim=1)).square().sum(1).mean()
        return F.l1_loss(f, g) if self.distance == "l1" else F.mse_loss(f, g)
