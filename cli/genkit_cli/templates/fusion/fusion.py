"""Convolutions over a level and the next coarser one."""

import genkit
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """Adds to the latents what convolutions make of both levels."""

    def __init__(
        self, options: TemplateNameOptions, level: genkit.Level, coarser_level: genkit.Level
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(level.channels + coarser_level.channels, options.width, 1),
            nn.SiLU(),
            nn.Conv2d(options.width, level.channels, 3, padding=1),
        )

    def forward(self, latents: Tensor, coarser: Tensor) -> Tensor:
        """Mix the coarser level's quantized latents into the finer level's, whose shape stays."""
        wide = F.interpolate(coarser, size=latents.shape[2:])
        return latents + self.layers(torch.cat([latents, wide], 1))
