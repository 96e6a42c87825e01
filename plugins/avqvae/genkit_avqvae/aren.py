"""The attentive residual encoder, AREN (Table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from genkit import Level
from genkit_avqvae import ARENOptions
from genkit_avqvae.blocks import conv, halvings, widths_between


class AREN(nn.Module):
    """A base that all levels share, then each level's own part.

    That part is residual blocks with halvings, a 1x1 projection and attention.
    """

    def __init__(self, options: ARENOptions) -> None:
        super().__init__()
        self.attend = options.attend
        widths = widths_between(options.width, 1, options.base_stride)
        self.base = nn.Sequential(
            halvings(3, widths, options.blocks), conv(widths[-1], options.base_channels, 1)
        )
        self.levels: list[Level] = []
        self.trunks, self.projections, self.attentions = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        for index, stride in enumerate(options.strides[: options.levels]):
            self.levels.append(Level(index, options.latent_channels, stride))
            widths = widths_between(options.width, options.base_stride, stride)
            # A level's attention compares pixels of this width.
            # With `attend coarser` it compares those of the next level too.
            if (
                options.attend == "coarser"
                and index
                and widths[-1] != self.projections[-1].in_channels
            ):
                raise ValueError("levels that attend to each other need the same width")
            self.trunks.append(halvings(options.base_channels, widths, options.blocks))
            self.projections.append(conv(widths[-1], options.latent_channels, 1))
            self.attentions.append(options.attention.build(widths[-1]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The latents of every level, finest first, of images `[B, 3, H, W]`.

        They are `[B, C, H / stride, W / stride]`.
        """
        base = self.base(images)
        features = [trunk(base) for trunk in self.trunks]
        values = [project(x) for project, x in zip(self.projections, features, strict=True)]
        latents = []
        for index, attention in enumerate(self.attentions):
            source = index + (self.attend == "coarser" and index + 1 < len(features))
            latents.append(
                attention(features[index], values[index], features[source], values[source])
            )
        return latents
