"""taming-transformers' networks, which most families share, as genkit's `vqgan` networks.

The functions take tensors under taming's names, with two changes that make families alike: the
layers at the coarsest resolution are `mid.block.J` and `mid.attn`, and the decoder's levels count
from the finest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkit import GenkitError
from genkit_importers.names import numbered

Settings = dict[str, Any]

TAMING_MIDDLE = (
    (r"\.mid\.block_1\.", ".mid.block.0."),
    (r"\.mid\.attn_1\.", ".mid.attn."),
    (r"\.mid\.block_2\.", ".mid.block.1."),
)
# All names that tensors can have here; the codes of a family are among them.
_KNOWN = re.compile(
    r"""(en|de)coder\.(
        (down|up)\.\d+\.(
            block\.\d+\.(norm[12]|conv[12]|nin_shortcut)
            |attn\.\d+\.(norm|q|k|v|proj_out)
            |downsample\.conv|upsample\.conv1?
        )
        |mid\.(block\.\d+\.(norm[12]|conv[12]|nin_shortcut)|attn\.(norm|q|k|v|proj_out))
        |adaptive\.\d+\.(gamma|beta)|norm_out|conv_in|conv_out
    )\.(weight|bias)
    |(post_)?quant_conv\.(weight|bias)
    |quantize\.(embed|embedding|embedding_proj|proj)\.(weight|bias)
    |quantize\.codebook_used""",
    re.VERBOSE,
)
_BLOCK = {
    "norm1": "branch.0.0",
    "conv1": "branch.1",
    "norm2": "branch.2.0",
    "conv2": "branch.3",
    "nin_shortcut": "skip",
}


@dataclass(frozen=True)
class Style:
    """Properties of a family's networks that names and shapes leave open."""

    down: str = "asymmetric"
    upsample: str = "nearest"
    image_range: str = "signed"
    groups: int = 32
    eps: float = 1e-6


def finest_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose decoder counts its levels from the coarsest, counted from the finest."""
    levels = numbered(tensors, r"decoder\.up\.(\d+)\.")

    def counted(name: str) -> str:
        return re.sub(
            r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name
        )

    return {counted(name): value for name, value in tensors.items()}


def check_known(tensors: Mapping[str, Tensor]) -> None:
    """`GenkitError` if a part of a tokenizer has a tensor that nothing here reads."""
    if unknown := sorted(name for name in tensors if not _KNOWN.fullmatch(name)):
        raise GenkitError(
            f"{len(unknown)} of its tensors belong to no part that is known, first '{unknown[0]}'"
        )


def encoder_settings(tensors: Mapping[str, Tensor], style: Style) -> Settings:
    """The options of the encoder `vqgan` that describe the tensors."""
    levels = numbered(tensors, r"encoder\.down\.(\d+)\.")
    return {
        "name": "vqgan",
        "levels": 1,
        "patch": 1,
        "strides": [2 ** (levels - 1)],
        "latent_channels": len(tensors["encoder.conv_out.weight"]),
        "head_kernel": str(tensors["encoder.conv_out.weight"].shape[-1]),
        "mix": _mixes(tensors),
        "down": style.down,
        **_shared("encoder.down", levels, tensors, style),
    }


def decoder_settings(tensors: Mapping[str, Tensor], style: Style) -> Settings:
    """The options of the decoder `vqgan` that describe the tensors."""
    levels = numbered(tensors, r"decoder\.up\.(\d+)\.")
    return {
        "name": "vqgan",
        "patch": 1,
        "mix": _mixes(tensors),
        "upsample": style.upsample,
        "adaptive": any(name.startswith("decoder.adaptive.") for name in tensors),
        **_shared("decoder.up", levels, tensors, style),
    }


def _mixes(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a 1x1 convolution stands between network and codes without changing the channels."""
    weight = tensors.get("quant_conv.weight")
    return weight is not None and weight.shape[0] == weight.shape[1]


def projected(tensors: Mapping[str, Tensor]) -> int:
    """The codes' dimension if a 1x1 convolution changes the channels, else 0."""
    weight = tensors.get("quant_conv.weight")
    return len(weight) if weight is not None and not _mixes(tensors) else 0


def _shared(where: str, levels: int, tensors: Mapping[str, Tensor], style: Style) -> Settings:
    side = where.partition(".")[0]
    counts = {numbered(tensors, rf"{where}\.{n}\.block\.(\d+)\.") for n in range(levels)}
    if len(counts) > 1:
        raise GenkitError(f"its {side} has different numbers of blocks per level: {sorted(counts)}")
    width = [len(tensors[f"{where}.{n}.block.0.conv2.weight"]) for n in range(levels)]
    if side == "encoder" and len(tensors["encoder.conv_in.weight"]) != width[0]:
        raise GenkitError(
            "its encoder's first convolution has other channels than its first level, which no "
            "network here has"
        )
    shortcuts = [name for name in tensors if re.match(rf"{where}.*nin_shortcut\.weight", name)]
    again = [
        name
        for name in shortcuts
        if tensors[name].shape[1] != tensors[name.replace("nin_shortcut", "conv1")].shape[1]
    ]
    return {
        "width": width,
        "blocks": counts.pop(),
        "attention_strides": [
            2**n for n in range(levels) if f"{where}.{n}.attn.0.norm.weight" in tensors
        ]
        or [0],
        "norm_groups": style.groups,
        "norm_eps": style.eps,
        "bias": f"{where}.0.block.0.conv1.bias" in tensors,
        "shortcut": "output" if again else "input",
        "middle_blocks": numbered(tensors, rf"{side}\.mid\.block\.(\d+)\."),
        "middle_attention": f"{side}.mid.attn.norm.weight" in tensors,
        "image_range": style.image_range,
    }


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under genkit's names."""
    return dict(_converted("encoder", tensors))


def decoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors under genkit's names."""
    return dict(_converted("decoder", tensors))


def _converted(side: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    levels = numbered(
        tensors, r"encoder\.down\.(\d+)\." if side == "encoder" else r"decoder\.up\.(\d+)\."
    )
    for name, value in tensors.items():
        if match := re.fullmatch(rf"{side}\.(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)", name):
            _, level, layer, number, rest = match.groups()
            attended = f"{side}.{match[1]}.{level}.attn.0.norm.weight" in tensors
            place = int(number) * (1 + attended) + (layer == "attn")
            yield from _layer(
                f"{_stage(side, int(level), levels)}.{place}", layer, rest, name, tensors
            )
        elif match := re.fullmatch(rf"{side}\.mid\.(block\.(\d+)|attn)\.(.+)", name):
            after = f"{side}.mid.attn.norm.weight" in tensors and (match[2] or "0") != "0"
            number = 1 if match[1] == "attn" else int(match[2]) + after
            middle = "encoder.heads.0.0" if side == "encoder" else "decoder.enter.2"
            yield from _layer(
                f"{middle}.{number}", match[1].partition(".")[0], match[3], name, tensors
            )
        elif match := re.fullmatch(
            rf"{side}\.(down|up)\.(\d+)\.(down|up)sample\.conv1?\.(.+)", name
        ):
            stage, rest = _stage(side, int(match[2]), levels, 1), match[4]
            inner = {"encoder": "", "decoder": ".0" if "conv1." in name else ".1"}[side]
            yield f"{stage}{inner}.{rest}", value
        elif match := re.fullmatch(r"decoder\.adaptive\.(\d+)\.(gamma|beta)\.(.+)", name):
            part = {"gamma": "scale", "beta": "shift"}[match[2]]
            yield f"decoder.adaptive.{levels - 1 - int(match[1])}.{part}.{match[3]}", value
        else:
            ends = _ENDS[side]
            stem, _, kind = name.rpartition(".")
            if stem in ends and (stem.startswith(side) or _mixes(tensors)):
                yield f"{ends[stem]}.{kind}", value


_ENDS = {
    "encoder": {
        "encoder.conv_in": "encoder.enter",
        "encoder.norm_out": "encoder.heads.0.1.0",
        "encoder.conv_out": "encoder.heads.0.2",
        "quant_conv": "encoder.heads.0.3",
    },
    "decoder": {
        "post_quant_conv": "decoder.enter.0",
        "decoder.conv_in": "decoder.enter.1",
        "decoder.norm_out": "decoder.leave.0.0",
        "decoder.conv_out": "decoder.leave.1",
    },
}


def _stage(side: str, level: int, levels: int, after: int = 0) -> str:
    """The name of the layers at a level, or of the layer `after` them."""
    if side == "encoder":
        return f"encoder.ways.0.{2 * level + after}"
    return f"decoder.grow.{2 * (levels - 1 - level) + after}"


def _layer(
    place: str, layer: str, rest: str, name: str, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """A tensor of a block or of an attention; queries, keys and values are one convolution here."""
    part, _, kind = rest.partition(".")
    if layer == "block":
        yield f"{place}.{_BLOCK[part]}.{kind}", tensors[name]
    elif part == "q":
        three = [tensors[name[: -len(rest)] + f"{each}.{kind}"] for each in "qkv"]
        yield f"{place}.enter.{kind}", torch.cat(three)
    elif part not in "kv":
        yield f"{place}.{'leave' if part == 'proj_out' else part}.{kind}", tensors[name]
