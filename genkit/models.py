"""Which parts a model has."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.plugin.options import Part, part

# The channels of images, unless a data set or a model file says otherwise.
RGB = 3


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The components of a tokenizer."""

    encoder: Part = part("encoder", "", "turns images into latents, one set a level")
    quantizer: Part = part(
        "quantizer", "", "turns latents into indices of a codebook, level by level"
    )
    fusion: Part = part(
        "fusion",
        "",
        "mixes a quantized coarser level into the next finer one; unused with one level",
    )
    decoder: Part = part("decoder", "", "turns quantized latents into images")
