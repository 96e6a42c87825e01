"""Files of Open-MAGVIT2 and of SimVQ, whose networks are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genkit_importers.family import Family
from genkit_importers.names import averaged
from genkit_importers.nets import Settings, Style


class _Magvit2(Family):
    rules = (
        (r"\.mid_block\.(\d+)\.", r".mid.block.\1."),
        (r"\.downsample\.(weight|bias)$", r".downsample.conv.\1"),
    )

    def chosen(self, tensors: Mapping[str, Tensor], names: dict[str, str]) -> dict[str, str]:
        """See `Family`. Averaged weights count where the file has them."""
        return averaged(tensors, names)

    def style(self, facts: Mapping[str, Any]) -> Style:
        """See `Family`."""
        return Style("symmetric", "shuffle", self.options.image_range)

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Family`. Doubling orders its channels (block, colour) there, the other way here."""
        return {
            name: value.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
            if ".upsample.conv1." in name
            else value
            for name, value in tensors.items()
        }


class OpenMagvit2(_Magvit2):
    """Open-MAGVIT2: codes are signs, and the latents steer a norm at each level of the decoder."""

    licence = "Apache-2.0"

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return any(name.startswith("decoder.adaptive.") for name in names)

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Family`. The first channel is the lowest bit there, the highest one here."""
        result = super().adapted(tensors)
        for kind in ("weight", "bias"):
            result[f"encoder.conv_out.{kind}"] = result[f"encoder.conv_out.{kind}"].flip(0)
        for name, value in result.items():
            if name == "decoder.conv_in.weight" or (
                name.startswith("decoder.adaptive.") and name.endswith("weight")
            ):
                result[name] = value.flip(1)
        return result

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """See `Family`."""
        bits = len(tensors["encoder.conv_out.weight"])
        return {"name": "lfq", "bits": bits}, {
            "quantizers.0.inner.mask": 2 ** torch.arange(bits).flip(0)
        }


class SimVQ(_Magvit2):
    """SimVQ: codes are a table times a learned matrix, plus a bias."""

    resolution = 128

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return "quantize.embedding_proj.weight" in names

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """See `Family`. The bias becomes the weight of one more dimension, which is 1."""
        table = tensors["quantize.embedding.weight"]
        weight = tensors["quantize.embedding_proj.weight"]
        bias = tensors["quantize.embedding_proj.bias"]
        settings = {
            "name": "simvq",
            "codebook_size": len(table),
            "codebook_dim": table.shape[1] + 1,
            "gradient": "straight-through",
        }
        return settings, {
            "quantizers.0.inner.frozen_codebook": torch.cat([table, torch.ones(len(table), 1)], 1),
            "quantizers.0.inner.code_transform.weight": torch.cat([weight, bias[:, None]], 1),
        }
