"""The components of "Attentive VQ-VAE" (Rivera and Hoyos, arXiv 2309.11641)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from genkit import Component, NoOptions, Part, Preset, hookimpl, option, part
from genkit_avqvae.presets import paper_presets


@dataclass(frozen=True)
class ARENOptions:
    """Options of the attentive residual encoder."""

    other_names: ClassVar[dict[str, str]] = {
        "embedding_dim": "latent_channels",
        "embed_dim": "latent_channels",
        "z_channels": "latent_channels",
        "latent_dim": "latent_channels",
    }

    levels: int = option(2, "number of latent levels", minimum=1)
    attention: Part = part("attention", "none", "attention at the end of every level")
    attend: Literal["self", "coarser"] = option(
        "self",
        "context of each level's attention: the level itself, or the next coarser level, if any",
        needs="attention",
    )
    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full resolution and after each 2x downsampling (patching included); the last "
        "value repeats",
        minimum=1,
    )
    blocks: int = option(1, "identity blocks before each 2x downsampling", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "normalisation before each leaky ReLU; batch in the paper"
    )
    patch: int = option(
        2,
        "patch size in pixels, folded into channels before the first convolution",
        minimum=1,
    )
    strides: tuple[int, ...] = option(
        (4, 8, 16), "downsampling factor of each level, finest first", minimum=2
    )
    base_stride: int = option(4, "downsampling factor of the shared base network", minimum=1)
    base_channels: int = option(128, "output channels of the shared base network", minimum=1)
    latent_channels: int = option(64, "latent channels per level", minimum=1)
    mix: bool = option(False, "add a 1x1 convolution to the latents of each level")

    def __post_init__(self) -> None:
        if len(self.strides) < self.levels:
            raise ValueError(
                f"{self.levels} levels need at least {self.levels} strides, "
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
                "patch, base stride and strides must be powers of two in ascending order, "
                "and no two strides may be equal, "
                f"not {self.patch}, {self.base_stride}, {strides}"
            )


@dataclass(frozen=True)
class PixelOptions:
    """Options of residual pixel attention."""

    dim: int = option(32, "channels of queries and keys", minimum=1)
    norm: Literal["logn", "div_n", "none"] = option(
        "logn",
        "normalisation over N context pixels: bias -log N, division by N, or none (authors' form)",
    )


@dataclass(frozen=True)
class HierarchicalOptions:
    """Options of the paper's fusion of two levels."""

    width: int = option(
        0, "channels during upsampling; 0 uses the coarser level's channels", minimum=0
    )
    blocks: int = option(1, "identity blocks before each 2x upsampling", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "normalisation before each leaky ReLU; batch in the paper"
    )


@dataclass(frozen=True)
class VQOptions:
    """Options of vector quantization."""

    other_names: ClassVar[dict[str, str]] = {
        "num_embeddings": "codebook_size",
        "n_embed": "codebook_size",
        "num_codes": "codebook_size",
        "vocab_size": "codebook_size",
        "commitment_cost": "commitment_weight",
        "beta": "commitment_weight",
        "decay": "ema_decay",
        "threshold_ema_dead_code": "revive",
        "code_dim": "codebook_dim",
        "kmeans_init": "kmeans_start",
    }

    codebook_size: int = option(512, "codebook size: number of codes per level", minimum=2)
    codebook_dim: int = option(0, "dimension of the codes; 0 uses the level's channels", minimum=0)
    distance: Literal["euclidean", "cosine", "product"] = option(
        "euclidean",
        "distance between latents and codes; cosine normalises both, product takes the code with "
        "the largest inner product",
    )
    update: Literal["ema", "gradient", "linear"] = option(
        "ema",
        "codebook update: exponential moving average, gradient descent, or a learned matrix over a "
        "fixed codebook (SimVQ)",
    )
    gradient: Literal["straight-through", "rotation"] = option(
        "straight-through", "gradient estimator: straight-through, or the rotation trick"
    )
    ema_decay: float = option(
        0.99, "decay of the codebook's moving averages", minimum=0, maximum=1, needs="update=ema"
    )
    commitment_weight: float = option(
        0.25, "weight of the commitment loss, which pulls latents to their codes", minimum=0
    )
    entropy_weight: float = option(
        0.0, "weight of the entropy loss: confident assignments, even use of codes", minimum=0
    )
    entropy_temperature: float = option(
        0.01,
        "softmax temperature of the entropy loss, as a share of the codes' variance",
        minimum=1e-6,
        needs="entropy_weight",
    )
    kmeans_start: bool = option(
        True, "initialise the codebook by k-means on the first batch", cure=True
    )
    revive: float = option(
        50.0,
        "re-seed a code after N x codebook-size latents without use, or 5% of training so far if "
        "sooner; 0 disables",
        minimum=0,
        cure=50.0,
    )


@dataclass(frozen=True)
class MirrorOptions:
    """Options of the decoder that mirrors AREN."""

    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full resolution and after each 2x downsampling (patching included); the last "
        "value repeats",
        minimum=1,
    )
    blocks: int = option(1, "identity blocks before each 2x upsampling", minimum=0, maximum=1000)
    norm: Literal["batch", "group", "none"] = option(
        "none", "normalisation before each leaky ReLU; batch in the paper"
    )
    patch: int = option(
        2, "patch size in pixels, unfolded from channels after the last convolution", minimum=1
    )
    sees: Literal["finest", "all"] = option(
        "all", "levels that the decoder reads: all, or only the finest, as in the paper"
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
            "attentive residual encoder with one or more levels",
        ),
        Component(
            "attention",
            "pixel",
            f"{here}.attention:Pixel",
            PixelOptions,
            "sigmoid attention between all pixels",
        ),
        Component(
            "attention",
            "none",
            f"{here}.attention:NoAttention",
            NoOptions,
            "no attention, only convolutions",
        ),
        Component(
            "fusion",
            "hierarchical",
            f"{here}.fusion:Hierarchical",
            HierarchicalOptions,
            "upsampled coarser level, concatenated and mixed",
        ),
        Component(
            "quantizer",
            "vq",
            f"{here}.vq:VectorQuantizer",
            VQOptions,
            "vector quantization with a learned codebook (VQ)",
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
    about = "default components of a run"
    return [Preset("default", default, about), *paper_presets()]
