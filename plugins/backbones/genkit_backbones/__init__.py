"""Pretrained networks, as encoders and in perceptual losses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from genkit import Component, hookimpl, option

_WEIGHTS = "pretrained weights: a local file, or 'hub' to download timm's"


@dataclass(frozen=True)
class TimmOptions:
    """Options of an encoder that is one of timm's models."""

    model: str = option("convnextv2_atto", "name of a timm model with feature maps")
    weights: str = option("", f"{_WEIGHTS}; empty for random initialisation", local=True)
    freeze: bool = option(
        False, "freeze the model and train only the layers after it", needs="weights"
    )
    levels: int = option(2, "number of latent levels", minimum=1)
    strides: tuple[int, ...] = option(
        (4, 8, 16, 32), "downsampling factor of each level, finest first", minimum=1
    )
    latent_channels: int = option(64, "latent channels per level", minimum=1)
    normalize: bool = option(
        True, "normalise images to the mean and deviation of the model's training"
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")
        strides = self.strides[: self.levels]
        if len(strides) < self.levels or sorted(set(strides)) != list(strides):
            raise ValueError(
                f"{self.levels} levels need at least {self.levels} strides in ascending order, "
                f"not {self.strides}"
            )


@dataclass(frozen=True)
class TimmPerceptualOptions:
    """Options of a perceptual loss on the features of one of timm's models."""

    model: str = option("mobilenetv2_100", "name of a timm model with feature maps")
    weights: str = option("", _WEIGHTS, local=True)
    strides: tuple[int, ...] = option((2, 4, 8, 16), "strides of the feature maps to compare")
    distance: Literal["cosine", "l1", "l2"] = option(
        "cosine", "distance between features; cosine compares directions, as LPIPS does"
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


@dataclass(frozen=True)
class LPIPSOptions:
    """Options of LPIPS."""

    net: Literal["alex", "squeeze", "vgg"] = option(
        "vgg", "pretrained network whose features are compared"
    )
    weights: str = option(
        "",
        "the network's ImageNet weights: torchvision's file, or 'hub' to download it",
        local=True,
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


def _keep_absolute(options: Any, name: str) -> None:
    """Make the path in the option `name` absolute, so that it holds from any working directory."""
    value = getattr(options, name)
    if value not in ("", "hub"):
        # `object.__setattr__` works although the dataclass is frozen.
        object.__setattr__(options, name, os.path.abspath(value))


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "encoder",
            "timm",
            "genkit_backbones.encoder:Timm",
            TimmOptions,
            "any timm model with feature maps of several strides",
        ),
        Component(
            "perceptual",
            "timm",
            "genkit_backbones.perceptual:TimmPerceptual",
            TimmPerceptualOptions,
            "distance between the features of any timm model",
        ),
        Component(
            "perceptual",
            "lpips",
            "genkit_backbones.lpips:LPIPS",
            LPIPSOptions,
            "learned perceptual image patch similarity (LPIPS)",
            requires="genkit-vq[lpips]",
        ),
        Component(
            "metric",
            "lpips",
            "genkit_backbones.lpips:LPIPSMetric",
            LPIPSOptions,
            "learned perceptual image patch similarity (LPIPS)",
            requires="genkit-vq[lpips]",
        ),
    ]
