"""The indices of some images, with names, labels and other facts, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from genkit.errors import GenkitError


class Ragged(NamedTuple):
    """Indices of images with different grids: `[M]` or `[M, Q]`, and the grids `[N, 2]`."""

    indices: Tensor
    grids: Tensor

    def of(self, start: int, stop: int) -> Ragged:
        """The images from `start` to `stop - 1`."""
        ends = [0, *places(self.grids).cumsum(0).tolist()]
        return Ragged(self.indices[ends[start] : ends[stop]], self.grids[start:stop])

    def stacked(self) -> Tensor:
        """The indices `[B, h, w]` of images with equal grids; `GenkitError` for different ones."""
        if len(self.grids) and (self.grids != self.grids[0]).any():
            raise GenkitError("images of different sizes cannot be decoded in one batch")
        grid = self.grids[0].tolist() if len(self.grids) else [1, 1]
        return self.indices.reshape(-1, *grid, *self.indices.shape[1:])


def places(grids: Tensor) -> Tensor:
    """The number of places `[N]` in grids `[N, 2]`."""
    return grids.long().prod(1)


@dataclass(frozen=True)
class Rows:
    """Indices of N images, with the images' names, labels and other facts.

    A level, finest first, holds int32 indices `[N, h, w]`, or `[N, h, w, Q]` with Q codebooks; it
    is `Ragged` if grids differ. `labels` are int64 `[N]`: positions in the list of classes, or -1
    for none. `captions` are N texts, empty for none. `sizes` are the originals' heights and widths
    `[N, 2]`. `views` are `[N, 6]`: the view's number, the crop's top, left, height and width in the
    original, and 1 if it is mirrored.
    """

    levels: Sequence[Tensor | Ragged]
    names: Sequence[str]
    labels: Tensor | None = None
    captions: Sequence[str] | None = None
    sizes: Tensor | None = None
    views: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def of(self, start: int, stop: int) -> Rows:
        """The rows from `start` to `stop - 1`."""

        def part(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[start:stop]

        return Rows(
            [
                level.of(start, stop) if isinstance(level, Ragged) else level[start:stop]
                for level in self.levels
            ],
            self.names[start:stop],
            part(self.labels),
            None if self.captions is None else self.captions[start:stop],
            part(self.sizes),
            part(self.views),
        )

    def stacked(self) -> list[Tensor]:
        """The indices of each level as `Tokenizer.decode` takes them."""
        return [
            level.stacked() if isinstance(level, Ragged) else level.clone() for level in self.levels
        ]


def together(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    count = len(parts[0].levels)
    return Rows(
        [_joined([part.levels[index] for part in parts]) for index in range(count)],
        [name for part in parts for name in part.names],
        _column([part.labels for part in parts]),
        _texts(parts),
        _column([part.sizes for part in parts]),
        _column([part.views for part in parts]),
    )


def _joined(levels: Sequence[Tensor | Ragged]) -> Tensor | Ragged:
    tensors = [level for level in levels if isinstance(level, Tensor)]
    if len(tensors) == len(levels) and len({each.shape[1:] for each in tensors}) == 1:
        return torch.cat(tensors)
    ragged = [level if isinstance(level, Ragged) else as_ragged(level) for level in levels]
    return Ragged(
        torch.cat([each.indices for each in ragged]), torch.cat([each.grids for each in ragged])
    )


def as_ragged(level: Tensor) -> Ragged:
    """A level `[N, h, w]` or `[N, h, w, Q]` with a grid for each image."""
    grid = torch.tensor(level.shape[1:3], dtype=torch.int32)
    return Ragged(level.flatten(0, 2), grid.expand(len(level), 2))


def _column(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def _texts(parts: Sequence[Rows]) -> list[str] | None:
    if all(part.captions is None for part in parts):
        return None
    return [text for part in parts for text in part.captions or [""] * len(part)]


def packed(texts: Sequence[str]) -> tuple[bytes, Tensor]:
    """Texts as their concatenated UTF-8 and the offsets: each start, and the last end."""
    parts = [text.encode("utf-8", "backslashreplace") for text in texts]
    return b"".join(parts), torch.tensor([0, *map(len, parts)]).cumsum(0)


def unpacked(content: bytes, offsets: Sequence[int]) -> list[str]:
    """The texts of `packed`; `GenkitError` if the offsets do not fit the bytes."""
    if offsets[0] != 0 or offsets[-1] != len(content) or sorted(offsets) != list(offsets):
        raise GenkitError("offsets do not match their bytes")
    try:
        return [content[start:end].decode() for start, end in pairwise(offsets)]
    except UnicodeDecodeError as error:
        raise GenkitError(str(error)) from error
