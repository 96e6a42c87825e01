"""VQGAN's convolutional encoder and decoder, its Gumbel quantizer, and a residual decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from genkit import Component, Preset, hookimpl, option
from genkit_vqgan.presets import published


@dataclass(frozen=True)
class NetOptions:
    """Options of the layers that VQGAN's encoder and decoder share."""

    norm_groups: int = option(
        0, "groups of the group norms; 0 chooses up to 32 of at least 4 channels", minimum=0
    )
    norm_eps: float = option(
        1e-5, "eps of the group norms; 1e-6 in VQGAN", minimum=1e-12, maximum=1
    )
    bias: bool = option(
        True, "biases in the convolutions of blocks and in the encoder's first convolution"
    )
    shortcut: Literal["input", "output"] = option(
        "input",
        "where a block's width changes, what its 1x1 shortcut reads: the block's input, or the "
        "result of its branch (MaskGIT)",
    )
    middle_blocks: int = option(
        2, "residual blocks at the coarsest resolution", minimum=1, maximum=1000
    )
    middle_attention: bool = option(
        True, "self-attention after the first residual block at the coarsest resolution"
    )
    image_range: Literal["signed", "unit"] = option(
        "signed", "range of pixel values inside the network: [-1, 1], or [0, 1]"
    )


@dataclass(frozen=True)
class PathOptions:
    """Options of the encoder's levels."""

    other_names: ClassVar[dict[str, str]] = {
        "embedding_dim": "latent_channels",
        "embed_dim": "latent_channels",
        "z_channels": "latent_channels",
        "latent_dim": "latent_channels",
    }

    levels: int = option(2, "number of latent levels", minimum=1)
    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full resolution and after each 2x downsampling (patching included); the last "
        "value repeats",
        minimum=1,
    )
    blocks: int = option(1, "residual blocks per resolution", minimum=1, maximum=1000)
    patch: int = option(
        2, "patch size in pixels of the first convolution; 1 in the paper", minimum=1
    )
    strides: tuple[int, ...] = option(
        (4, 8, 16), "downsampling factor of each level, finest first", minimum=1
    )
    attention_strides: tuple[int, ...] = option(
        (8, 16), "strides with self-attention after each block; 0 disables it", minimum=0
    )
    latent_channels: int = option(64, "latent channels per level", minimum=1)
    mix: bool = option(False, "add a 1x1 convolution to the latents of each level")


@dataclass(frozen=True)
class EncoderOptions(NetOptions, PathOptions):
    """Options of VQGAN's encoder."""

    down: Literal["symmetric", "asymmetric", "average"] = option(
        "symmetric",
        "2x downsampling: a strided 3x3 convolution with zeros on all sides, or at the right and "
        "bottom alone (VQGAN), or the mean of 2x2 pixels (MaskGIT)",
    )
    head_kernel: Literal["1", "3"] = option(
        "3", "kernel size of the last convolution of each level"
    )

    def __post_init__(self) -> None:
        _check_groups(self.norm_groups, self.width)
        if len(self.strides) < self.levels:
            raise ValueError(
                f"{self.levels} levels need at least {self.levels} strides, "
                f"not {len(self.strides)}: {self.strides}"
            )
        strides = self.strides[: self.levels]
        grown = [self.patch, *strides]
        if sorted(grown) != grown or len(set(strides)) < self.levels:
            raise ValueError(
                "strides must grow from level to level and be at least the patch size, "
                f"not {self.patch}, {strides}"
            )
        _check_powers("patch and strides", grown)
        _check_powers("attention strides", [stride for stride in self.attention_strides if stride])


@dataclass(frozen=True)
class GrowOptions:
    """Options shared by the decoders."""

    width: tuple[int, ...] = option(
        (32, 64, 128),
        "channels at full resolution and after each 2x downsampling (patching included); the last "
        "value repeats",
        minimum=1,
    )
    blocks: int = option(1, "residual blocks per resolution", minimum=1, maximum=1000)
    patch: int = option(
        2,
        "patch size in pixels, unfolded from channels after the last convolution; 1 in VQGAN",
        minimum=1,
    )
    sees: Literal["finest", "all"] = option(
        "all", "levels that the decoder reads: all, or only the finest"
    )

    def __post_init__(self) -> None:
        _check_powers("the patch", [self.patch])


@dataclass(frozen=True)
class DecoderOptions(NetOptions, GrowOptions):
    """Options of VQGAN's decoder."""

    attention_strides: tuple[int, ...] = option(
        (8, 16), "strides with self-attention after each block; 0 disables it", minimum=0
    )
    mix: bool = option(False, "add a 1x1 convolution to the latents")
    upsample: Literal["nearest", "shuffle"] = option(
        "nearest",
        "2x upsampling: nearest neighbour and a convolution, or a convolution and pixel shuffle",
    )
    adaptive: bool = option(
        False,
        "a norm before the blocks of each resolution, with scale and shift from the deviation and "
        "mean of the latents (Open-MAGVIT2)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(self.norm_groups, self.width)
        _check_powers("attention strides", [stride for stride in self.attention_strides if stride])


@dataclass(frozen=True)
class ResidualOptions(GrowOptions):
    """Options of the residual decoder."""

    upsample: Literal["nearest", "shuffle"] = option(
        "shuffle",
        "2x upsampling: nearest neighbour and a convolution, or a convolution and pixel shuffle",
    )


@dataclass(frozen=True)
class CategoricalOptions:
    """Options of the quantizer with a logit for each code."""

    other_names: ClassVar[dict[str, str]] = {
        "num_embeddings": "codebook_size",
        "n_embed": "codebook_size",
        "num_codes": "codebook_size",
        "vocab_size": "codebook_size",
    }

    codebook_size: int = option(512, "codebook size: number of codes per level", minimum=2)
    temperature: float = option(1.0, "temperature of the Gumbel softmax at first", minimum=1e-6)
    final_temperature: float = option(
        0.0625, "temperature of the Gumbel softmax in the end", minimum=1e-6
    )
    anneal: int = option(
        1000, "training steps over which the temperature falls exponentially", minimum=1
    )
    straight_through: bool = option(
        True, "one code per latent in training, in place of a weighted mean of all codes"
    )
    kl_weight: float = option(
        5e-4, "weight of the divergence of the codes' probabilities from even ones", minimum=0
    )


def _check_groups(groups: int, width: tuple[int, ...]) -> None:
    if groups and any(channels % groups for channels in width):
        raise ValueError(
            f"every width must be a multiple of the norm's {groups} groups, not {width}"
        )


def _check_powers(what: str, numbers: list[int]) -> None:
    if any(number & (number - 1) for number in numbers):
        raise ValueError(f"{what} must be powers of two, not {', '.join(map(str, numbers))}")


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_vqgan"
    return [
        Component(
            "quantizer",
            "categorical",
            f"{here}.categorical:Categorical",
            CategoricalOptions,
            "a logit for each code, drawn with Gumbel noise in training",
        ),
        Component(
            "encoder",
            "vqgan",
            f"{here}.encoder:Encoder",
            EncoderOptions,
            "VQGAN's convolutional encoder with one or more levels",
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
            "residual blocks initialised as identities",
        ),
    ]


@hookimpl
def genkit_presets() -> list[Preset]:
    return published()
