"""Files of MaskGIT's VQGAN, as 1d-tokenizer and open-muse keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit_importers.family import Family
from genkit_importers.nets import Style


class MaskGIT(Family):
    """MaskGIT's VQGAN: halving by the mean, images in [0, 1], no attention."""

    licence = "Apache-2.0"
    rules = (
        (r"\.mid\.(\d+)\.", r".mid.block.\1."),
        (r"\.upsample_conv\.", ".upsample.conv."),
    )

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return "encoder.mid.0.norm1.weight" in names and not any(
            name.startswith("encoder.conv_blocks.") for name in names
        )

    def style(self, facts: Mapping[str, Any]) -> Style:
        """See `Family`."""
        return Style(down="average", image_range=self.options.image_range)
