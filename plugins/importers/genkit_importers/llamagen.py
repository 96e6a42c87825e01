"""Files of LlamaGen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genkit_importers.family import Family, lookup
from genkit_importers.nets import Settings, finest_first


class LlamaGen(Family):
    """LlamaGen's tokenizers: latents and codes are compared at length 1."""

    rules = (
        (r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
        (r"^decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block."),
        (r"^encoder\.conv_blocks\.", "encoder.down."),
        (r"^decoder\.conv_blocks\.", "decoder.up."),
        (r"\.mid\.0\.", ".mid.block.0."),
        (r"\.mid\.1\.", ".mid.attn."),
        (r"\.mid\.2\.", ".mid.block.1."),
    )

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return any(name.startswith("encoder.conv_blocks.") for name in names)

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Family`."""
        return finest_first(tensors)

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """See `Family`."""
        return lookup(tensors, "cosine")
