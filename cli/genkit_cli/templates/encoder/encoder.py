"""Strided convolutions: one level per downsampling."""

import genkit
from torch import Tensor, nn

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """Downsamples by 4 for the first level, and by 2 for each further level."""

    def __init__(self, options: TemplateNameOptions, channels: int) -> None:
        super().__init__()
        width, latent = options.width, options.latent_channels
        self.levels = [genkit.Level(index, latent, 4 * 2**index) for index in range(options.levels)]
        first = nn.Sequential(halving(channels, width), halving(width, width))
        self.steps = nn.ModuleList([first, *(halving(width, width) for _ in self.levels[1:])])
        self.heads = nn.ModuleList(nn.Conv2d(width, latent, 1) for _ in self.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The latents of each level, finest first, of images `[B, channels, H, W]` in [-1, 1]."""
        latents, x = [], images
        for step, head in zip(self.steps, self.heads, strict=True):
            x = step(x)
            latents.append(head(x))
        return latents


def halving(channels: int, width: int) -> nn.Module:
    """A convolution that halves height and width."""
    return nn.Sequential(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.SiLU())
