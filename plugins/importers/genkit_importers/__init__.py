"""Importers of other projects' tokenizers, one per family of files.

Each recognises its files by the names of their tensors, and turns them into genkit's components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genkit import Component, NoOptions, hookimpl, option

_RANGE = "range of pixel values that the model takes: [-1, 1] or [0, 1]"


@dataclass(frozen=True)
class RangeOptions:
    """Options that no file of these families records."""

    image_range: Literal["signed", "unit"] = option("signed", _RANGE)


@dataclass(frozen=True)
class UnitOptions:
    """Like `RangeOptions`, for a family whose images lie in [0, 1]."""

    image_range: Literal["signed", "unit"] = option("unit", _RANGE)


@dataclass(frozen=True)
class DiffusersOptions:
    """Options that no file of diffusers records."""

    image_range: Literal["auto", "signed", "unit"] = option(
        "auto",
        f"{_RANGE}; auto is [0, 1] if config.json has lookup_from_codebook, as aMUSEd's does",
    )


@dataclass(frozen=True)
class TamingOptions(RangeOptions):
    """Options that no file of taming-transformers' family records."""

    codes: Literal["auto", "nearest", "product", "cosine"] = option(
        "auto",
        "rule that picks a code: the nearest, the largest product (IBQ), or the smallest angle; "
        "auto reads the configuration beside the file",
    )


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_importers"
    families = [
        ("taming", TamingOptions, "taming:Taming", "taming-transformers, latent-diffusion, IBQ"),
        ("gumbel", RangeOptions, "taming:Gumbel", "taming-transformers with Gumbel codes"),
        ("janus", TamingOptions, "taming:Janus", "Janus, as transformers stores it"),
        ("chameleon", RangeOptions, "taming:Chameleon", "Chameleon, as transformers stores it"),
        ("diffusers", DiffusersOptions, "diffusers:Diffusers", "diffusers' VQModel, aMUSEd"),
        ("llamagen", RangeOptions, "llamagen:LlamaGen", "LlamaGen"),
        ("maskgit", UnitOptions, "maskgit:MaskGIT", "MaskGIT's VQGAN, of 1d-tokenizer"),
        ("open-magvit2", RangeOptions, "magvit2:OpenMagvit2", "Open-MAGVIT2, of SEED-Voken"),
        ("simvq", RangeOptions, "magvit2:SimVQ", "SimVQ"),
    ]
    return [
        *(
            Component("importer", name, f"{here}.{target}", config, f"files of {whose}")
            for name, config, target, whose in families
        ),
        Component(
            "decoder",
            "no-decoder",
            f"{here}.missing:Missing",
            NoOptions,
            "no decoder: of a file that holds an encoder and codes alone",
        ),
    ]
