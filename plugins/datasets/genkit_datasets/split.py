"""The choice of held-out images by a hash of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from genkit.errors import DataError
from genkit_datasets import FileOptions


def held_out(keys: Sequence[str], options: FileOptions) -> list[bool]:
    """Whether each image is held out. Images with equal keys stay together.

    `DataError` if there is only one key.
    """
    ranks = {key: _share(f"{options.split_seed}:{key}") for key in keys}
    if len(ranks) == 1:
        raise DataError(
            f"'{options.location}' has only one readable image, but a held-out set needs a second "
            "one: add images"
        )
    ordered = sorted(ranks, key=ranks.__getitem__)
    below = sum(rank < options.heldout for rank in ranks.values())
    heldout = set(ordered[: min(max(1, below), len(ranks) - 1)])
    return [key in heldout for key in keys]


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
