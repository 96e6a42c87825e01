"""Quantizers of the library vector-quantize-pytorch as components.

`docs/zoo.md` lists the quantizers left out and the differences from the library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from genkit import Component, hookimpl, option

_ENTROPY = "weight of the entropy loss: confident assignments, even use of codes"
_COMMITMENT = "weight of the commitment loss, which pulls latents to their codes"
_GRADIENT = "gradient estimator: straight-through, or the rotation trick"
_ROUNDS = "number of rounds; each quantizes the residual of the previous ones"


@dataclass(frozen=True)
class LookupOptions:
    """Options shared by the quantizers with learned codebooks."""

    other_names: ClassVar[dict[str, str]] = {
        "num_embeddings": "codebook_size",
        "n_embed": "codebook_size",
        "num_codes": "codebook_size",
        "vocab_size": "codebook_size",
        "commitment_cost": "commitment_weight",
        "beta": "commitment_weight",
        "decay": "ema_decay",
        "threshold_ema_dead_code": "revive",
    }

    codebook_size: int = option(512, "codes in each codebook", minimum=2)
    gradient: Literal["straight-through", "rotation"] = option("rotation", _GRADIENT)
    ema_decay: float = option(0.99, "decay of the codebook's moving averages", minimum=0, maximum=1)
    commitment_weight: float = option(0.25, _COMMITMENT, minimum=0)
    revive: float = option(
        1.0,
        "re-seed a code whose moving average of latents per step falls below this; 0 disables",
        minimum=0,
        cure=1.0,
    )


@dataclass(frozen=True)
class ResidualVQOptions(LookupOptions):
    """Options of residual vector quantization."""

    other_names: ClassVar[dict[str, str]] = {
        "num_quantizers": "codebooks",
        "kmeans_init": "kmeans_start",
    }

    codebooks: int = option(
        4,
        "number of codebooks; each quantizes the residual of the previous ones",
        minimum=1,
        maximum=1000,
    )
    codebook_dim: int = option(0, "dimension of the codes; 0 uses the level's channels", minimum=0)
    shared: bool = option(False, "share one codebook among all rounds")
    kmeans_start: bool = option(
        True, "initialise the codebook by k-means on the first batch", cure=True
    )


@dataclass(frozen=True)
class GroupedResidualVQOptions(ResidualVQOptions):
    """Options of grouped residual vector quantization."""

    codebooks: int = option(2, "number of codebooks per group", minimum=1, maximum=1000)
    groups: int = option(2, "number of channel groups", minimum=1, maximum=1000)


@dataclass(frozen=True)
class MultiHeadVQOptions(LookupOptions):
    """Options of multi-head vector quantization."""

    codebooks: int = option(
        2, "number of heads, each with its own projection and codebook", minimum=1, maximum=1000
    )
    codebook_dim: int = option(16, "dimension of each head's codes", minimum=1)
    update: Literal["ema", "gradient"] = option(
        "ema", "codebook update: exponential moving average, or gradient descent"
    )
    orthogonal_weight: float = option(
        0.0, "weight of the loss that makes codes orthogonal to each other", minimum=0
    )

    def __post_init__(self) -> None:
        if self.orthogonal_weight and self.update == "ema":
            raise ValueError(
                "orthogonal_weight needs update=gradient, because moving averages follow no loss"
            )


@dataclass(frozen=True)
class BinaryOptions:
    """Options of the binary quantizers."""

    other_names: ClassVar[dict[str, str]] = {
        "commitment_cost": "commitment_weight",
        "beta": "commitment_weight",
    }

    bits: int = option(9, "bits per code; the codebook size is 2^bits", minimum=1, maximum=24)
    codebooks: int = option(1, "number of codebooks: codes per latent", minimum=1, maximum=1000)
    commitment_weight: float = option(0.25, _COMMITMENT, minimum=0)
    entropy_weight: float = option(
        0.1,
        _ENTROPY,
        minimum=0,
        cure=0.1,
    )
    diversity: float = option(
        1.0,
        "weight of even code use within the entropy loss",
        minimum=0,
        cure=1.0,
        needs="entropy_weight",
    )
    temperature: float = option(
        0.01, "softmax temperature of the entropy loss", minimum=1e-6, needs="entropy_weight"
    )


@dataclass(frozen=True)
class SphericalOptions(BinaryOptions):
    """Options of binary spherical quantization."""

    entropy_weight: float = option(
        0.01,
        _ENTROPY,
        minimum=0,
        cure=0.01,
    )


@dataclass(frozen=True)
class ValuesOptions:
    """Options shared by the quantizers that round each dimension of a code by itself."""

    values: tuple[int, ...] = option(
        (8, 5, 5, 5), "number of values in each dimension of a code", minimum=2
    )
    codebooks: int = option(1, "number of codebooks: codes per latent", minimum=1, maximum=1000)

    def __post_init__(self) -> None:
        if (codes := math.prod(self.values)) > 2**31 - 1:
            raise ValueError(
                f"{codes} codes do not fit a 31-bit index: use fewer or smaller values"
            )


@dataclass(frozen=True)
class ScalarOptions(ValuesOptions):
    """Options of finite scalar quantization."""

    symmetric: bool = option(True, "space the values evenly from -1 to 1, ends included")
    noise: float = option(
        0.0, "share of dimensions that get noise in training", minimum=0, maximum=1
    )
    rotate: bool = option(False, "apply a fixed random rotation to latents before rounding")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.symmetric and (2 in self.values or self.noise):
            raise ValueError("noise, and dimensions of two values, need symmetric values")
        if self.rotate and len(set(self.values)) > 1:
            raise ValueError(
                f"rotate needs the same number of values in every dimension, not {self.values}"
            )


@dataclass(frozen=True)
class ResidualFSQOptions(ValuesOptions):
    """Options of residual finite scalar quantization."""

    codebooks: int = option(2, _ROUNDS, minimum=1, maximum=1000)


@dataclass(frozen=True)
class LatentOptions(ValuesOptions):
    """Options of latent quantization."""

    other_names: ClassVar[dict[str, str]] = {
        "commitment_cost": "commitment_weight",
        "beta": "commitment_weight",
    }

    learn: bool = option(True, "learn the values; otherwise they stay evenly spaced")
    commitment_weight: float = option(0.1, _COMMITMENT, minimum=0)
    codebook_weight: float = option(
        0.1, "weight of the loss that pulls values to their latents", minimum=0, needs="learn"
    )


@dataclass(frozen=True)
class SimVQOptions:
    """Options of SimVQ: a fixed codebook times a learned matrix."""

    other_names: ClassVar[dict[str, str]] = {
        "num_embeddings": "codebook_size",
        "n_embed": "codebook_size",
        "num_codes": "codebook_size",
        "vocab_size": "codebook_size",
        "commitment_cost": "commitment_weight",
        "beta": "commitment_weight",
    }

    codebook_size: int = option(512, "codes in each codebook", minimum=2)
    codebook_dim: int = option(
        0, "dimension of the fixed codebook; 0 uses the level's channels", minimum=0
    )
    gradient: Literal["straight-through", "rotation"] = option("rotation", _GRADIENT)
    commitment_weight: float = option(0.25, _COMMITMENT, minimum=0)


@dataclass(frozen=True)
class ResidualSimVQOptions(SimVQOptions):
    """Options of residual SimVQ."""

    other_names: ClassVar[dict[str, str]] = {
        "num_quantizers": "codebooks",
    }

    codebooks: int = option(4, _ROUNDS, minimum=1, maximum=1000)


@hookimpl
def genkit_components() -> list[Component]:
    rows = [
        ("residual-vq", "lookup:Residual", ResidualVQOptions, "residual vector quantization (RVQ)"),
        (
            "grouped-residual-vq",
            "lookup:GroupedResidual",
            GroupedResidualVQOptions,
            "RVQ of each channel group",
        ),
        (
            "multi-head-vq",
            "lookup:MultiHead",
            MultiHeadVQOptions,
            "several heads, each with its own codebook",
        ),
        ("simvq", "simvq:Sim", SimVQOptions, "a fixed codebook times a learned matrix (SimVQ)"),
        ("residual-simvq", "simvq:ResidualSim", ResidualSimVQOptions, "residual SimVQ"),
        ("lfq", "binary:Binary", BinaryOptions, "lookup-free quantization: signs (LFQ)"),
        ("bsq", "binary:Spherical", SphericalOptions, "binary spherical quantization (BSQ)"),
        (
            "zoo-fsq",
            "scalar:Scalar",
            ScalarOptions,
            "finite scalar quantization (FSQ)",
        ),
        ("residual-fsq", "scalar:ResidualScalar", ResidualFSQOptions, "residual FSQ"),
        (
            "latent",
            "scalar:Latent",
            LatentOptions,
            "latent quantization: learned values per channel (LQ)",
        ),
    ]
    return [
        Component(
            "quantizer", name, f"genkit_zoo.{target}", config, text, requires="genkit-vq[zoo]"
        )
        for name, target, config, text in rows
    ]
