"""VQGAN's encoder (Esser et al. 2021, arXiv 2012.09841, appendix), with one or more levels."""

from __future__ import annotations

from torch import Tensor, nn

from genkit import Level
from genkit_vqgan import EncoderOptions
from genkit_vqgan.blocks import act, conv, halve, middle, stage, strides_between, width_at


class Encoder(nn.Module):
    """C3, then residual blocks and 2x downsampling per resolution, and a head per level.

    All levels share one downsampling path. A level's head (group norm, SiLU and C3) reads the
    features at its stride. The head of the coarsest level starts with block, attention, block. With
    a single level this is the paper's encoder.
    """

    def __init__(self, options: EncoderOptions, channels: int) -> None:
        super().__init__()
        patch, latent = options.patch, options.latent_channels
        self.unit = options.image_range == "unit"
        strides = options.strides[: options.levels]
        self.levels = [Level(index, latent, stride) for index, stride in enumerate(strides)]
        width = width_at(options.width, patch)
        # One strided convolution does the same as folding patches into channels and a 3x3
        # convolution.
        self.enter = nn.Conv2d(
            channels, width, 3 * patch, stride=patch, padding=patch, bias=options.bias
        )
        self.ways, self.heads = nn.ModuleList(), nn.ModuleList()
        passed = 0
        for coarser in strides:
            way: list[nn.Module] = []
            for stride in strides_between(2 * passed if passed else patch, coarser):
                out = width_at(options.width, stride)
                way += [halve(width, options.down)] if stride > patch else []
                attention = stride in options.attention_strides
                way.append(stage(width, out, options.blocks, attention, options))
                width = out
            passed = coarser
            self.ways.append(nn.Sequential(*way))
            self.heads.append(
                nn.Sequential(
                    middle(width, options) if coarser == strides[-1] else nn.Identity(),
                    act(width, options),
                    conv(width, latent, int(options.head_kernel)),
                    conv(latent, latent, 1) if options.mix else nn.Identity(),
                )
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """The latents of each level, finest first, of images `[B, channels, H, W]`.

        Their shape is `[B, C, H / stride, W / stride]`.
        """
        x, latents = self.enter((images + 1) / 2 if self.unit else images), []
        for way, head in zip(self.ways, self.heads, strict=True):
            x = way(x)
            latents.append(head(x))
        return latents
