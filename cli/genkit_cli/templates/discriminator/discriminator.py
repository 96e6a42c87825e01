"""Strided convolutions that score patches."""

from torch import Tensor, nn

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """One logit for each patch of 8 x 8 pixels: high for real, low for reconstructed."""

    def __init__(self, options: TemplateNameOptions, channels: int) -> None:
        super().__init__()
        width = options.width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=4),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, h, w]` of images `[B, channels, H, W]` in [-1, 1]."""
        return self.layers(images)
