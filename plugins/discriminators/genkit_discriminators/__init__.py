"""Discriminators for adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, Part, hookimpl, option, part


@dataclass(frozen=True)
class PatchGANOptions:
    """Options of the patch discriminator."""

    width: tuple[int, ...] = option(
        (64, 64, 64, 32, 32), "output channels of each convolution except the last", minimum=1
    )
    strides: tuple[int, ...] = option((2, 2, 2, 1, 1, 1), "stride of each convolution", minimum=1)
    norm: Literal["group", "batch", "none"] = option(
        "group", "normalisation after each convolution except the last"
    )
    norm_logits: bool = option(
        False, "normalise the logits too, as in the paper; harmful in practice"
    )
    dropout: float = option(
        0.0, "dropout after each convolution except the last", minimum=0, maximum=0.99
    )

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.width) + 1:
            raise ValueError(
                f"{len(self.width)} widths need {len(self.width) + 1} strides, one per convolution "
                f"including the last, not {len(self.strides)}"
            )


@dataclass(frozen=True)
class StyleGANOptions:
    """Options of StyleGAN2's discriminator."""

    width: tuple[int, ...] = option(
        (16, 32, 64, 128, 128),
        "channels at full resolution and after each 2x downsampling",
        minimum=1,
    )
    group: int = option(
        4, "images per group of the minibatch standard deviation; 1 disables it", minimum=1
    )


@dataclass(frozen=True)
class MultiscaleOptions:
    """Options of discriminators at several scales."""

    each: Part = part("discriminator", "patchgan", "discriminator at each scale")
    scales: int = option(2, "number of scales, each half the size of the previous one", minimum=1)


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
            "residual blocks that score whole images",
        ),
        Component(
            "discriminator",
            "multiscale",
            f"{here}.multiscale:Multiscale",
            MultiscaleOptions,
            "one discriminator per image scale",
        ),
    ]
