"""Differences of edges at several scales."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """Mean absolute differences of neighbouring pixels' differences, over scales."""

    def __init__(self, options: TemplateNameOptions, channels: int) -> None:
        super().__init__()
        self.scales = options.scales

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar for batches `[B, channels, H, W]` in [-1, 1], 0 for equal ones."""
        error, losses = reconstructions - images, []
        for _ in range(self.scales):
            losses += [error.diff(dim=2).abs().mean(), error.diff(dim=3).abs().mean()]
            if min(error.shape[2:]) < 4:
                break
            error = F.avg_pool2d(error, 2)
        return torch.stack(losses).mean()
