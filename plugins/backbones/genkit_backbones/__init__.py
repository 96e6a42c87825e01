"""Networks that others have trained: as encoders, and to look through in perceptual losses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from genkit import Component, hookimpl, option

_WEIGHTS = "weights to start from: a local file, or 'hub' to fetch timm's own by the model's name"


@dataclass(frozen=True)
class TimmOptions:
    """Options of an encoder that is one of timm's models."""

    model: str = option("convnextv2_atto", "any model that timm knows and that has feature maps")
    weights: str = option("", f"{_WEIGHTS}; none starts from random ones", local=True)
    freeze: bool = option(
        False, "leave the model as it is and train what comes after it alone", needs="weights"
    )
    levels: int = option(2, "levels of latents", minimum=1)
    strides: tuple[int, ...] = option(
        (4, 8, 16, 32), "pixels that a latent spans, level by level from the finest", minimum=1
    )
    latent_channels: int = option(64, "channels of every level's latents", minimum=1)
    normalize: bool = option(True, "give the model images of the mean and deviation it expects")

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")
        strides = self.strides[: self.levels]
        if len(strides) < self.levels or sorted(set(strides)) != list(strides):
            raise ValueError(
                f"{self.levels} levels need as many strides that grow, not {self.strides}"
            )


@dataclass(frozen=True)
class TimmPerceptualOptions:
    """Options of a perceptual loss on the features of one of timm's models."""

    model: str = option("mobilenetv2_100", "any model that timm knows and that has feature maps")
    weights: str = option("", _WEIGHTS, local=True)
    strides: tuple[int, ...] = option(
        (2, 4, 8, 16), "the feature maps to compare, by the pixels that one of their places spans"
    )
    distance: Literal["cosine", "l1", "l2"] = option(
        "cosine", "between features: of their directions, as LPIPS does, or of their values"
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


@dataclass(frozen=True)
class LPIPSOptions:
    """Options of LPIPS."""

    net: Literal["alex", "squeeze", "vgg"] = option("vgg", "the network behind it")
    weights: str = option(
        "",
        "the network's ImageNet weights: torchvision's file, or 'hub' to fetch it",
        local=True,
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


def _keep_absolute(options: Any, name: str) -> None:
    """Make the path in the option `name` absolute, so that it stays the same from anywhere."""
    value = getattr(options, name)
    if value not in ("", "hub"):
        # A frozen dataclass's own way past its freeze.
        object.__setattr__(options, name, os.path.abspath(value))


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "encoder",
            "timm",
            "genkit_backbones.encoder:Timm",
            TimmOptions,
            "any of timm's models with feature maps of several strides",
        ),
        Component(
            "perceptual",
            "timm",
            "genkit_backbones.perceptual:TimmPerceptual",
            TimmPerceptualOptions,
            "distance between the features of any of timm's models",
        ),
        Component(
            "perceptual",
            "lpips",
            "genkit_backbones.lpips:LPIPS",
            LPIPSOptions,
            "learned perceptual similarity",
            requires="genkit-vq[lpips]",
        ),
        Component(
            "metric",
            "lpips",
            "genkit_backbones.lpips:LPIPSMetric",
            LPIPSOptions,
            "learned perceptual similarity",
            requires="genkit-vq[lpips]",
        ),
    ]
