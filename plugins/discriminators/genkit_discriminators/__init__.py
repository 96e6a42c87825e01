"""Discriminators for adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, Part, hookimpl, option, part


@dataclass(frozen=True)
class PatchGANOptions:
    """Options of the patch discriminator."""

    width: tuple[int, ...] = option(
        (64, 64, 64, 32, 32), "channels of each convolution but the last, which has one", minimum=1
    )
    strides: tuple[int, ...] = option((2, 2, 2, 1, 1, 1), "stride of each convolution", minimum=1)
    norm: Literal["group", "batch", "none"] = option(
        "group", "normalisation after each convolution but the last"
    )
    norm_logits: bool = option(
        False, "normalise the logits too, as the paper does; harmful in practice"
    )
    dropout: float = option(
        0.0, "dropout after each convolution but the last", minimum=0, maximum=0.99
    )

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.width) + 1:
            raise ValueError(
                f"{len(self.width)} widths and a last channel need {len(self.width) + 1} strides"
            )


@dataclass(frozen=True)
class StyleGANOptions:
    """Options of StyleGAN2's discriminator."""

    width: tuple[int, ...] = option(
        (16, 32, 64, 128, 128), "channels at full size and after each halving", minimum=1
    )
    group: int = option(
        4, "images whose standard deviation is shown to the last layers; 1 shows none", minimum=1
    )


@dataclass(frozen=True)
class MultiscaleOptions:
    """Options of discriminators at several scales."""

    each: Part = part("discriminator", "patchgan", "what judges at each scale")
    scales: int = option(2, "scales, each half as large as the one before", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_discriminators"
    return [
        Component(
            "discriminator",
            "patchgan",
            f"{here}.patchgan:PatchGAN",
            PatchGANOptions,
            "convolutions that score patches",
        ),
        Component(
            "discriminator",
            "stylegan",
            f"{here}.stylegan:StyleGAN",
            StyleGANOptions,
            "residual blocks that score whole images among their batch",
        ),
        Component(
            "discriminator",
            "multiscale",
            f"{here}.multiscale:Multiscale",
            MultiscaleOptions,
            "one discriminator for each scale of the image",
        ),
    ]
