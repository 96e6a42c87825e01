"""The components of "Attentive VQ-VAE" (Rivera and Hoyos, arXiv 2309.11641)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, NoOptions, Part, Preset, hookimpl, option, part
from genkit_avqvae.presets import paper_presets


@dataclass(frozen=True)
class ARENOptions:
    """Options of the attentive residual encoder."""

    levels: int = option(2, "levels of latents", minimum=1)
    attention: Part = part("attention", "none", "attention at the end of every level")
    attend: Literal["self", "coarser"] = option(
        "self",
        "what a level attends to: itself, or the next coarser level if there is one",
        needs="attention",
    )
    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full size and after each halving, be it by patches; the last serves on",
        minimum=1,
    )
    blocks: int = option(1, "identity blocks before each halving", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "what normalises before each leaky ReLU; in the paper it is batch norm"
    )
    patch: int = option(
        2, "pixels on a side that are folded into channels before the first convolution", minimum=1
    )
    strides: tuple[int, ...] = option(
        (4, 8, 16), "pixels that a latent spans, level by level from the finest", minimum=2
    )
    base_stride: int = option(4, "the part of the strides that all levels share", minimum=1)
    base_channels: int = option(128, "channels that the shared base hands to the levels", minimum=1)
    latent_channels: int = option(64, "channels of every level's latents", minimum=1)
    mix: bool = option(False, "mix the channels of every level's latents by one more convolution")

    def __post_init__(self) -> None:
        if len(self.strides) < self.levels:
            raise ValueError(
                f"{self.levels} levels need as many strides, "
                f"not {len(self.strides)}: {self.strides}"
            )
        strides = self.strides[: self.levels]
        grown = (self.patch, self.base_stride, *strides)
        if (
            any(stride & (stride - 1) for stride in grown)
            or sorted(grown) != list(grown)
            or len(set(strides)) < self.levels
        ):
            raise ValueError(
                "patch, base stride and strides must be powers of two, none below the one before, "
                "and no two strides alike, "
                f"not {self.patch}, {self.base_stride}, {strides}"
            )


@dataclass(frozen=True)
class PixelOptions:
    """Options of residual pixel attention."""

    dim: int = option(32, "channels of queries and keys", minimum=1)
    norm: Literal["logn", "div_n", "none"] = option(
        "logn", "for N pixels: bias -log N, weights over N, or none, the authors' form"
    )


@dataclass(frozen=True)
class HierarchicalOptions:
    """Options of the paper's fusion of two levels."""

    width: int = option(0, "channels while resizing; 0 takes those of the coarser level", minimum=0)
    blocks: int = option(1, "identity blocks before each doubling", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "what normalises before each leaky ReLU; in the paper it is batch norm"
    )


@dataclass(frozen=True)
class VQOptions:
    """Options of vector quantization."""

    codebook_size: int = option(512, "codes in each level's codebook", minimum=2)
    codebook_dim: int = option(
        0, "channels that codes are looked up in; 0 takes the level's", minimum=0
    )
    distance: Literal["euclidean", "cosine"] = option(
        "euclidean", "what nearest means; cosine normalises both sides"
    )
    update: Literal["ema", "gradient", "linear"] = option(
        "ema",
        "how codes learn: running averages, the optimizer, or a matrix over all of them that it "
        "learns",
    )
    gradient: Literal["straight-through", "rotation"] = option(
        "straight-through", "how latents get their gradient: as their code's, or rotated with it"
    )
    ema_decay: float = option(
        0.99, "decay of the running averages", minimum=0, maximum=1, needs="update=ema"
    )
    commitment_weight: float = option(
        0.25, "weight of the loss that draws latents to their codes", minimum=0
    )
    entropy_weight: float = option(
        0.0, "weight of the loss that wants latents sure of a code and all codes used", minimum=0
    )
    entropy_temperature: float = option(
        0.01,
        "how soft that loss assigns codes, as a share of their variance",
        minimum=1e-6,
        needs="entropy_weight",
    )
    kmeans_start: bool = option(True, "start the codes by k-means of the first batch", cure=True)
    revive: float = option(
        50.0,
        "move a code unused for this times the codebook's size of latents, or, if that is less, "
        "for a twentieth of training so far; 0 never",
        minimum=0,
        cure=50.0,
    )


@dataclass(frozen=True)
class MirrorOptions:
    """Options of the decoder that mirrors AREN."""

    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full size and after each halving, be it by patches; the last serves on",
        minimum=1,
    )
    blocks: int = option(1, "identity blocks before each doubling", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "what normalises before each leaky ReLU; in the paper it is batch norm"
    )
    patch: int = option(
        2, "pixels on a side that unfold from channels after the last convolution", minimum=1
    )
    sees: Literal["finest", "all"] = option(
        "all", "the levels it sees: all, or the finest alone as in the paper"
    )


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_avqvae"
    return [
        Component(
            "encoder",
            "aren",
            f"{here}.aren:AREN",
            ARENOptions,
            "attentive residual encoder of several levels",
        ),
        Component(
            "attention",
            "pixel",
            f"{here}.attention:Pixel",
            PixelOptions,
            "sigmoid attention between all pixels",
        ),
        Component(
            "attention", "none", f"{here}.attention:NoAttention", NoOptions, "convolution alone"
        ),
        Component(
            "fusion",
            "hierarchical",
            f"{here}.fusion:Hierarchical",
            HierarchicalOptions,
            "resize, concatenate, mix",
        ),
        Component(
            "quantizer",
            "vq",
            f"{here}.vq:VectorQuantizer",
            VQOptions,
            "nearest code of a learned codebook",
        ),
        Component(
            "decoder", "mirror", f"{here}.decoder:Mirror", MirrorOptions, "AREN's blocks in reverse"
        ),
    ]


@hookimpl
def genkit_presets() -> list[Preset]:
    default = {
        "encoder": "aren",
        "quantizer": "vq",
        "fusion": "hierarchical",
        "decoder": "mirror",
        "data": "faces",
        "reconstruction": "l2",
        "optimizer": "muon",
        "schedule": "cosine",
        "discriminator_optimizer": "adam",
    }
    about = "what a run is made of if nothing else is named"
    return [Preset("default", default, about), *paper_presets()]
