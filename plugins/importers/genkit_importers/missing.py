"""The decoder of a tokenizer whose file has none."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genkit import GenkitError, Level, NoOptions


class Missing(nn.Module):
    """No decoder: images can be encoded, and decoding raises `GenkitError`."""

    def __init__(self, options: NoOptions, levels: Sequence[Level], channels: int) -> None:
        super().__init__()

    def forward(self, latents: list[Tensor]) -> Tensor:
        """Raises `GenkitError`."""
        raise GenkitError(
            "this tokenizer has no decoder, since the file that it was imported from holds none: "
            "it encodes images, but cannot decode indices"
        )
