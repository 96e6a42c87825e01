"""Pretrained networks: encoders, perceptual losses, discriminators and metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from genkit import Component, Part, Preset, hookimpl, option, part

_WEIGHTS = "pretrained weights: a local file, or 'hub' to download timm's"


@dataclass(frozen=True)
class TimmOptions:
    """Options of an encoder that is one of timm's models."""

    other_names: ClassVar[dict[str, str]] = {
        "embedding_dim": "latent_channels",
        "embed_dim": "latent_channels",
        "z_channels": "latent_channels",
        "latent_dim": "latent_channels",
    }

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
class TimmDiscriminatorOptions:
    """Options of a discriminator on the features of one of timm's models."""

    model: str = option("mobilenetv2_100", "name of a timm model with feature maps")
    weights: str = option("", _WEIGHTS, local=True)
    strides: tuple[int, ...] = option((4, 8, 16), "strides of the feature maps to score")
    width: int = option(64, "channels of the heads", minimum=1)

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


@dataclass(frozen=True)
class TimmFeaturesOptions:
    """Options of the features of one of timm's models."""

    model: str = option("tf_efficientnet_lite0", "name of a timm model")
    weights: str = option("", f"{_WEIGHTS}; empty for the file of an installed package", local=True)
    size: int = option(
        0, "height and width of the model's input in pixels; 0 is the model's own", minimum=0
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


@dataclass(frozen=True)
class InceptionOptions:
    """Options of the features of the Inception network of FID."""

    weights: str = option("", "weights: torch-fidelity's file, or 'hub' to download it", local=True)
    resize: Literal["tensorflow", "clean"] = option(
        "tensorflow",
        "resize to 299 pixels: TensorFlow 1's bilinear one without antialias, or clean-fid's "
        "bicubic one with antialias",
    )

    def __post_init__(self) -> None:
        _keep_absolute(self, "weights")


_FIGURES = Literal["all", "fd", "kid", "precision", "recall", "sfid", "is"]


@dataclass(frozen=True)
class DistancesOptions:
    """Options of the distances between sets of images."""

    features: Part = part("features", "timm", "network whose features are compared")
    figures: tuple[_FIGURES, ...] = option(
        ("all",), "figures to compute; all: every one that features and number of images allow"
    )
    reference: str = option(
        "", "file of reference statistics to compare with, .npz of ours or ADM's", local=True
    )
    save: str = option("", "file to write the statistics of the images to, .npz", local=True)
    neighbours: int = option(3, "number of neighbours of precision and recall", minimum=1)
    splits: int = option(1, "number of parts of the Inception score", minimum=1)

    def __post_init__(self) -> None:
        _keep_absolute(self, "reference")
        _keep_absolute(self, "save")


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
            "discriminator",
            "timm",
            "genkit_backbones.discriminator:TimmDiscriminator",
            TimmDiscriminatorOptions,
            "trained heads on the frozen features of any timm model",
        ),
        _lpips("perceptual", "LPIPS"),
        _lpips("metric", "LPIPSMetric"),
        Component(
            "metric",
            "distances",
            "genkit_backbones.features:FeatureDistances",
            DistancesOptions,
            "FD or FID, KID, precision and recall between images and reconstructions",
        ),
        Component(
            "features",
            "timm",
            "genkit_backbones.features:TimmFeatures",
            TimmFeaturesOptions,
            "features of any timm model; timm:MODEL for short",
        ),
        Component(
            "features",
            "inception",
            "genkit_backbones.inception:Inception",
            InceptionOptions,
            "torch-fidelity's Inception network, for FID, sFID and IS",
            requires="genkit-vq[fid]",
        ),
    ]


def _lpips(kind: str, name: str) -> Component:
    return Component(
        kind,
        "lpips",
        f"genkit_backbones.lpips:{name}",
        LPIPSOptions,
        "learned perceptual image patch similarity (LPIPS)",
        requires="genkit-vq[lpips]",
    )


@hookimpl
def genkit_presets() -> list[Preset]:
    settings: dict[str, Any] = {
        "discriminator": "timm",
        "discriminator_lr": 1e-3,
        "discriminator_head_start": 100,
        "discriminator_ramp": 50,
        "adversarial_loss": "hinge",
        "adversarial_adaptive": True,
        "adversarial_weight": 0.5,
    }
    return [Preset("adversarial", settings, "a discriminator that learns fast; add it to a model")]


@hookimpl
def genkit_settings_for(kind: str, name: str) -> dict[str, Any] | None:
    """`timm:MODEL` as features stands for the model of timm."""
    if kind == "features" and name.startswith("timm:"):
        return {"name": "timm", "model": name.removeprefix("timm:")}
    return None
