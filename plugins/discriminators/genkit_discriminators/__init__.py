"""Discriminators for adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, hookimpl, option


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


@hookimpl
def genkit_components() -> list[Component]:
    target = "genkit_discriminators.patchgan:PatchGAN"
    return [
        Component(
            "discriminator", "patchgan", target, PatchGANOptions, "convolutions that score patches"
        )
    ]
