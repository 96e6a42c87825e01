"""The attentive residual encoder, AREN (Table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from genkit import Level
from genkit_avqvae import ARENOptions
from genkit_avqvae.blocks import Fold, conv, halvings, widths_between


class AREN(nn.Module):
    """A base network shared by all levels, then one branch per level.

    A branch has residual blocks with downsampling, a 1x1 projection and attention.
    """

    def __init__(self, options: ARENOptions, channels: int) -> None:
        super().__init__()
        self.attend = options.attend
        patch = options.patch
        widths = widths_between(options.width, patch, options.base_stride)
        stem = halvings(channels * patch**2, widths, options.blocks, options.norm)
        fold = [Fold(patch)] if patch > 1 else []
        self.base = nn.Sequential(*fold, stem, conv(widths[-1], options.base_channels, 1))
        strides, latent = options.strides[: options.levels], options.latent_channels
        self.levels = [Level(index, latent, stride) for index, stride in enumerate(strides)]
        paths = [widths_between(options.width, options.base_stride, stride) for stride in strides]
        ends = [widths[-1] for widths in paths]
        if options.attend == "coarser" and len(set(ends)) > 1:
            raise ValueError(
                f"attend=coarser needs the same width at all levels, not {ends}: change width"
            )
        self.trunks = nn.ModuleList(
            halvings(options.base_channels, widths, options.blocks, options.norm)
            for widths in paths
        )
        self.projections = nn.ModuleList(conv(width, latent, 1) for width in ends)
        self.attentions = nn.ModuleList(options.attention.build(width) for width in ends)
        self.mixes = nn.ModuleList(
            conv(latent, latent, 1) if options.mix else nn.Identity() for _ in ends
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """The latents of each level, finest first, of images `[B, channels, H, W]`.

        Their shape is `[B, C, H / stride, W / stride]`.
        """
        base = self.base(images)
        features = [trunk(base) for trunk in self.trunks]
        values = [project(x) for project, x in zip(self.projections, features, strict=True)]
        latents = []
        for index, attention in enumerate(self.attentions):
            other = index + 1 if self.attend == "coarser" and index + 1 < len(values) else index
            attended = attention(features[index], values[index], features[other], values[other])
            latents.append(self.mixes[index](attended))
        return latents
