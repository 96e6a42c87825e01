"""The parts of a model, as options."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.plugin.options import Part, part

# The number of image channels, unless a data set or a model file says otherwise.
RGB = 3
# Images have at most so many channels.
MOST_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The components of a tokenizer."""

    encoder: Part = part("encoder", "", "network that turns images into latents, per level")
    quantizer: Part = part(
        "quantizer", "", "quantizer that turns latents into codebook indices, per level"
    )
    fusion: Part = part(
        "fusion",
        "",
        "network that mixes a quantized coarser level into the next finer one; unused with one "
        "level",
    )
    decoder: Part = part("decoder", "", "network that turns quantized latents into images")
