"""The sequences that a prior learns from: images encoded once before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genkit.checkpoint.model import fingerprint
from genkit.data.split import Subset
from genkit.errors import CheckpointError, UnreadableImage
from genkit.interfaces import Split
from genkit.layout import Layout
from genkit.tokenizer import Tokenizer
from genkit.tokens import INDEX
from genkit.tokens.dataset import Tokens, load_tokens
from genkit.tokens.encode import Progress, encode

# Views of an image at most, unless the run says otherwise.
_VIEWS = 16
_PROBES = 4


class Sequences:
    """Encoded images as sequences, with their labels and names."""

    def __init__(self, tokens: Tokens, layout: Layout) -> None:
        self.tokens, self.layout = tokens, layout
        self.labels, self.names = tokens.labels, tokens.names

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """The sequences int64 `[B, N]` of some rows."""
        levels = zip(*(self.tokens.batch(row, row + 1) for row in numbers), strict=True)
        return self.layout.flatten([torch.cat(level) for level in levels])


def chosen(split: Split, draws: int, views: int, seed: int) -> tuple[Split, int]:
    """The images to encode for so many draws, and the number of views of each.

    A run that draws fewer images than there are gets as many as it draws, one view each.
    """
    if draws <= len(split):
        numbers = np.random.default_rng(seed).permutation(len(split))[:draws]
        return Subset(split, sorted(numbers.tolist())), 1
    used = -(-draws // len(split))
    if views == 0:
        views = min(used, _VIEWS) if _varies(split) else 1
    return split, min(views, used)


def _varies(split: Split) -> bool:
    """Whether seeds change the images of a split."""
    for image in range(min(_PROBES, len(split))):
        try:
            pixels = split.images([image] * 3, [1, 2, 3])
        except UnreadableImage:
            continue
        if (pixels != pixels[0]).any():
            return True
    return False


def encoded(
    tokenizer: Tokenizer,
    split: Split,
    folder: Path,
    *,
    views: int,
    batch_size: int,
    workers: int,
    progress: Progress,
) -> Tokens:
    """The indices of a split in a folder, encoded first if the folder is new.

    `CheckpointError` if the folder holds indices of another tokenizer or of other images.
    """
    if not (folder / INDEX).is_file():
        return encode(
            tokenizer,
            split,
            folder,
            views=views,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    tokens = load_tokens(folder)
    for what, found, wanted in (
        ("tokenizer", tokens.model, fingerprint(tokenizer)),
        ("data set", tokens.source, split.fingerprint),
    ):
        if found != wanted:
            raise CheckpointError(
                f"'{folder}' holds the indices of another {what}: name another folder"
            )
    return tokens
