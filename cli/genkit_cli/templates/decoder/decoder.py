"""All levels together at the resolution of the finest one, then pixels from channels."""

import genkit
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """Adds up the levels, and turns each latent of the finest grid into its pixels."""

    def __init__(
        self, options: TemplateNameOptions, levels: list[genkit.Level], channels: int
    ) -> None:
        super().__init__()
        width, stride = options.width, levels[0].stride
        self.heads = nn.ModuleList(nn.Conv2d(level.channels, width, 1) for level in levels)
        self.last = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, channels * stride**2, 1),
            nn.PixelShuffle(stride),
        )

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` of the quantized latents, finest level first."""
        size = latents[0].shape[2:]
        parts = [head(each) for head, each in zip(self.heads, latents, strict=True)]
        return self.last(sum(F.interpolate(part, size=size) for part in parts))
