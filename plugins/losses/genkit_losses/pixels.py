"""Losses over pixels in [-1, 1]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from genkit import NoOptions


class L1:
    """The mean absolute error."""

    def __init__(self, options: NoOptions, channels: int) -> None:
        pass

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar, given two batches `[B, channels, H, W]`."""
        return F.l1_loss(reconstructions, images)


class L2:
    """The mean squared error."""

    def __init__(self, options: NoOptions, channels: int) -> None:
        pass

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar, given two batches `[B, channels, H, W]`."""
        return F.mse_loss(reconstructions, images)
