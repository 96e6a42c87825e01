"""Files of diffusers' VQModel, old names of attention included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genkit_importers.family import Family
from genkit_importers.nets import Style, finest_first


class Diffusers(Family):
    """diffusers' VQModel, which aMUSEd, VQ-Diffusion and latent-diffusion's ports use."""

    licence = "not stated in the file"
    rules = (
        (r"\.down_blocks\.(\d+)\.resnets\.(\d+)", r".down.\1.block.\2"),
        (r"\.down_blocks\.(\d+)\.attentions\.(\d+)", r".down.\1.attn.\2"),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.up_blocks\.(\d+)\.resnets\.(\d+)", r".up.\1.block.\2"),
        (r"\.up_blocks\.(\d+)\.attentions\.(\d+)", r".up.\1.attn.\2"),
        (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
        (r"\.mid_block\.resnets\.(\d+)", r".mid.block.\1"),
        (r"\.mid_block\.attentions\.0", ".mid.attn"),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.attn(\.\d+)?\.group_norm\.", r".attn\1.norm."),
        (r"\.(to_q|query)\.", ".q."),
        (r"\.(to_k|key)\.", ".k."),
        (r"\.(to_v|value)\.", ".v."),
        (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
    )

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return any(name.startswith("encoder.down_blocks.") for name in names)

    def style(self, facts: Mapping[str, Any]) -> Style:
        """See `Family`."""
        chosen = self.options.image_range
        if chosen == "auto":
            chosen = "unit" if facts.get("lookup_from_codebook") else "signed"
        groups = facts.get("norm_num_groups", 32)
        return Style(image_range=chosen, groups=groups if isinstance(groups, int) else 32)

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Family`. Matrices of attention become 1x1 convolutions."""
        return {
            name: value[:, :, None, None] if value.ndim == 2 and ".attn." in name else value
            for name, value in finest_first(tensors).items()
        }

    def resolution_in(self, facts: Mapping[str, Any]) -> int:
        """See `Family`."""
        size = facts.get("sample_size")
        return size if isinstance(size, int) and size > 0 else self.resolution
