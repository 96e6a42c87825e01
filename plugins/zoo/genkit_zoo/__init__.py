"""The quantizers of the library vector-quantize-pytorch, at every level and by name.

What of it is left out, and where these differ from it, is told in `docs/zoo.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from genkit import Component, hookimpl, option

_ENTROPY = "weight of the loss that wants latents sure of a code and all codes used"


@dataclass(frozen=True)
class LookupOptions:
    """Options of every quantizer whose codes are looked up in learned codebooks."""

    codebook_size: int = option(512, "codes in each codebook", minimum=2)
    gradient: Literal["straight-through", "rotation"] = option(
        "rotation", "how latents get their gradient: as their code's, or rotated with it"
    )
    ema_decay: float = option(
        0.99, "decay of the running averages that codes are", minimum=0, maximum=1
    )
    commitment_weight: float = option(
        0.25, "weight of the loss that draws latents to their codes", minimum=0
    )
    revive: float = option(
        1.0,
        "move a code whose running count of latents a step falls below this; 0 never",
        minimum=0,
        cure=1.0,
    )


@dataclass(frozen=True)
class ResidualVQOptions(LookupOptions):
    """Options of residual vector quantization."""

    codebooks: int = option(
        4, "codebooks, each for what those before it leave over", minimum=1, maximum=1000
    )
    codebook_dim: int = option(
        0, "channels that codes are looked up in; 0 takes the level's", minimum=0
    )
    shared: bool = option(False, "one codebook for all rounds instead of one each")
    kmeans_start: bool = option(True, "start the codes by k-means of the first batch", cure=True)


@dataclass(frozen=True)
class GroupedResidualVQOptions(ResidualVQOptions):
    """Options of residual vector quantization in groups of channels."""

    codebooks: int = option(2, "codebooks of each group", minimum=1, maximum=1000)
    groups: int = option(2, "groups that the channels are split into", minimum=1, maximum=1000)


@dataclass(frozen=True)
class MultiHeadVQOptions(LookupOptions):
    """Options of vector quantization with several heads."""

    codebooks: int = option(
        2, "heads, each with a projection and a codebook of its own", minimum=1, maximum=1000
    )
    codebook_dim: int = option(16, "channels that each head looks its code up in", minimum=1)
    update: Literal["ema", "gradient"] = option(
        "ema", "how codes learn: running averages, or the optimizer"
    )
    orthogonal_weight: float = option(
        0.0, "weight of the loss that wants codes orthogonal to each other", minimum=0
    )

    def __post_init__(self) -> None:
        if self.orthogonal_weight and self.update == "ema":
            raise ValueError("an orthogonal_weight needs update gradient: averages follow no loss")


@dataclass(frozen=True)
class BinaryOptions:
    """Options of the quantizers whose codes are signs."""

    bits: int = option(9, "signs to a code, so 2 to this many codes", minimum=1, maximum=24)
    codebooks: int = option(1, "codes to a latent", minimum=1, maximum=1000)
    commitment_weight: float = option(
        0.25, "weight of the loss that draws latents to their codes", minimum=0
    )
    entropy_weight: float = option(
        0.1,
        _ENTROPY,
        minimum=0,
        cure=0.1,
    )
    diversity: float = option(
        1.0,
        "weight, within that loss, of all codes being used",
        minimum=0,
        cure=1.0,
        needs="entropy_weight",
    )
    temperature: float = option(
        0.01, "how soft that loss assigns codes", minimum=1e-6, needs="entropy_weight"
    )


@dataclass(frozen=True)
class SphericalOptions(BinaryOptions):
    """Options of the same on a sphere."""

    entropy_weight: float = option(
        0.01,
        _ENTROPY,
        minimum=0,
        cure=0.01,
    )


@dataclass(frozen=True)
class ValuesOptions:
    """Options of every quantizer that rounds each of a code's numbers by itself."""

    values: tuple[int, ...] = option(
        (8, 5, 5, 5), "how many values each of a code's numbers may take", minimum=2
    )
    codebooks: int = option(1, "codes to a latent", minimum=1, maximum=1000)

    def __post_init__(self) -> None:
        if (codes := math.prod(self.values)) > 2**31 - 1:
            raise ValueError(f"{codes} codes are too many to number: take fewer or smaller values")


@dataclass(frozen=True)
class ScalarOptions(ValuesOptions):
    """Options of finite scalar quantization."""

    symmetric: bool = option(True, "place the values evenly from -1 to 1, both included")
    noise: float = option(
        0.0, "share of a code's numbers that get noise in training", minimum=0, maximum=1
    )
    rotate: bool = option(False, "turn latents by a fixed random rotation before rounding")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.symmetric and (2 in self.values or self.noise):
            raise ValueError("two values to a number, and noise, need symmetric values")
        if self.rotate and len(set(self.values)) > 1:
            raise ValueError(f"a rotation needs as many values everywhere, not {self.values}")


@dataclass(frozen=True)
class ResidualFSQOptions(ValuesOptions):
    """Options of finite scalar quantization of what is left over."""

    codebooks: int = option(
        2, "rounds, each for what those before it leave over", minimum=1, maximum=1000
    )


@dataclass(frozen=True)
class LatentOptions(ValuesOptions):
    """Options of latent quantization."""

    learn: bool = option(True, "learn the values; else they stay evenly spaced")
    commitment_weight: float = option(
        0.1, "weight of the loss that draws latents to their codes", minimum=0
    )
    codebook_weight: float = option(
        0.1, "weight of the loss that draws values to their latents", minimum=0, needs="learn"
    )


@dataclass(frozen=True)
class SimVQOptions:
    """Options of vector quantization with a fixed codebook that a learned matrix maps."""

    codebook_size: int = option(512, "codes in each codebook", minimum=2)
    codebook_dim: int = option(0, "channels of the fixed codebook; 0 takes the level's", minimum=0)
    gradient: Literal["straight-through", "rotation"] = option(
        "rotation", "how latents get their gradient: as their code's, or rotated with it"
    )
    commitment_weight: float = option(
        0.25, "weight of the loss that draws latents to their codes", minimum=0
    )


@dataclass(frozen=True)
class ResidualSimVQOptions(SimVQOptions):
    """Options of the same, in rounds."""

    codebooks: int = option(
        4, "rounds, each for what those before it leave over", minimum=1, maximum=1000
    )


@hookimpl
def genkit_components() -> list[Component]:
    rows = [
        ("residual-vq", "lookup:Residual", ResidualVQOptions, "several codebooks in rounds (RVQ)"),
        (
            "grouped-residual-vq",
            "lookup:GroupedResidual",
            GroupedResidualVQOptions,
            "RVQ of each group of channels",
        ),
        ("multi-head-vq", "lookup:MultiHead", MultiHeadVQOptions, "several codebooks side by side"),
        ("simvq", "simvq:Sim", SimVQOptions, "a fixed codebook that a matrix maps (SimVQ)"),
        ("residual-simvq", "simvq:ResidualSim", ResidualSimVQOptions, "SimVQ in rounds"),
        ("lfq", "binary:Binary", BinaryOptions, "signs of channels (lookup-free quantization)"),
        ("bsq", "binary:Spherical", SphericalOptions, "signs on a sphere (binary spherical)"),
        (
            "zoo-fsq",
            "scalar:Scalar",
            ScalarOptions,
            "rounding, with as many values a channel as wanted (FSQ)",
        ),
        ("residual-fsq", "scalar:ResidualScalar", ResidualFSQOptions, "FSQ in rounds"),
        ("latent", "scalar:Latent", LatentOptions, "learned values of each channel (LQ)"),
    ]
    return [
        Component(
            "quantizer", name, f"genkit_zoo.{target}", config, text, requires="genkit-vq[zoo]"
        )
        for name, target, config, text in rows
    ]
