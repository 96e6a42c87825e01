"""Which images are held out: those whose names a hash says so of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from genkit.errors import DataError
from genkit_datasets import FileOptions

File = TypeVar("File")


def files_of(
    split: str, files: list[File], key: Callable[[File], str], options: FileOptions
) -> list[File]:
    """Those of `files` that belong to the split `train` or `heldout`.

    Files of one key stay together. `DataError` if there is but one key.
    """
    ranks = {name: _share(f"{options.split_seed}:{name}") for name in map(key, files)}
    if len(ranks) == 1:
        raise DataError(
            f"'{options.location}' holds one readable image; "
            "two are needed to hold one out of training"
        )
    ordered = sorted(ranks, key=ranks.__getitem__)
    below = sum(rank < options.heldout for rank in ranks.values())
    heldout = set(ordered[: min(max(1, below), len(ranks) - 1)])
    return [file for file in files if (key(file) in heldout) == (split == "heldout")]


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
