"""The convolutional encoder and decoder of VQGAN, and a modern residual decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, Preset, hookimpl, option
from genkit_vqgan.presets import published


@dataclass(frozen=True)
class EncoderOptions:
    """Options of VQGAN's encoder."""

    levels: int = option(2, "levels of latents", minimum=1)
    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full size and after each halving, be it by patches; the last serves on",
        minimum=1,
    )
    blocks: int = option(1, "residual blocks at each size", minimum=1, maximum=1000)
    patch: int = option(
        2, "pixels on a side that the first convolution makes one of; in the paper 1", minimum=1
    )
    strides: tuple[int, ...] = option(
        (4, 8, 16), "pixels that a latent spans, level by level from the finest", minimum=1
    )
    attention_strides: tuple[int, ...] = option(
        (8, 16), "the sizes with self-attention after each block, as strides; 0 at none", minimum=0
    )
    latent_channels: int = option(64, "channels of every level's latents", minimum=1)
    mix: bool = option(False, "mix the channels of every level's latents by one more convolution")

    def __post_init__(self) -> None:
        if len(self.strides) < self.levels:
            raise ValueError(
                f"{self.levels} levels need as many strides, "
                f"not {len(self.strides)}: {self.strides}"
            )
        strides = self.strides[: self.levels]
        grown = [self.patch, *strides]
        if sorted(grown) != grown or len(set(strides)) < self.levels:
            raise ValueError(
                "the strides must grow from level to level and none may be below the patch, "
                f"not {self.patch}, {strides}"
            )
        _check_powers("patch and strides", grown)
        _check_powers("attention strides", [stride for stride in self.attention_strides if stride])


@dataclass(frozen=True)
class GrowOptions:
    """Options of every decoder here."""

    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full size and after each halving, be it by patches; the last serves on",
        minimum=1,
    )
    blocks: int = option(1, "residual blocks at each size", minimum=1, maximum=1000)
    patch: int = option(
        2,
        "pixels on a side that unfold from channels after the last convolution; for VQGAN 1",
        minimum=1,
    )
    sees: Literal["finest", "all"] = option("all", "the levels it sees: all, or the finest alone")

    def __post_init__(self) -> None:
        _check_powers("the patch", [self.patch])


@dataclass(frozen=True)
class DecoderOptions(GrowOptions):
    """Options of VQGAN's decoder."""

    attention_strides: tuple[int, ...] = option(
        (8, 16), "the sizes with self-attention after each block, as strides; 0 at none", minimum=0
    )
    mix: bool = option(False, "mix the channels of the latents by one more convolution")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_powers("attention strides", [stride for stride in self.attention_strides if stride])


@dataclass(frozen=True)
class ResidualOptions(GrowOptions):
    """Options of the residual decoder."""

    upsample: Literal["nearest", "shuffle"] = option(
        "shuffle",
        "how sizes double: nearest neighbour and a convolution, or a convolution whose channels "
        "become pixels",
    )


def _check_powers(what: str, numbers: list[int]) -> None:
    if any(number & (number - 1) for number in numbers):
        raise ValueError(f"{what} must be powers of two, not {', '.join(map(str, numbers))}")


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_vqgan"
    return [
        Component(
            "encoder",
            "vqgan",
            f"{here}.encoder:Encoder",
            EncoderOptions,
            "VQGAN's convolutional encoder, of one level or several",
        ),
        Component(
            "decoder",
            "vqgan",
            f"{here}.decoder:Decoder",
            DecoderOptions,
            "VQGAN's convolutional decoder",
        ),
        Component(
            "decoder",
            "residual",
            f"{here}.residual:Residual",
            ResidualOptions,
            "residual blocks that start as identities",
        ),
    ]


@hookimpl
def genkit_presets() -> list[Preset]:
    return [published()]
