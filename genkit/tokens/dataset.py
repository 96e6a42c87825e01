"""The indices of a collection of images, from a file or from many shards, read when asked for."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genkit.checkpoint.metadata import SCHEMA
from genkit.checkpoint.model import fingerprint
from genkit.errors import CheckpointError, GenkitError
from genkit.files import expanded, is_folder
from genkit.tokenizer import Tokenizer
from genkit.tokens.files import FileShard, write_rows
from genkit.tokens.parquet import ParquetShard
from genkit.tokens.rows import Ragged, Rows, together
from genkit.tokens.shard import Memory, Shard

# The list of a folder's shards, and the plan of an encoding that has not ended.
INDEX, UNFINISHED = "index.json", "unfinished.json"
_CHUNK = 4096


class Tokens(Dataset[dict[str, Any]]):
    """Indices of N images, with names, labels and captions; a torch `Dataset`.

    `tokens[n]` is a dict with the indices of each level, `level0` the finest: int32 `[h, w]`, or
    `[h, w, Q]` with Q codebooks; with the `name`; and, where known, `label` (-1 for none) and
    `caption`. `tokens[a:b]` are the tokens of some images. Both, and `len`, `names` and
    `captions`, read no more than what is asked for. `levels`, `labels`, `sizes` and `views` read
    the whole column.

    `classes` are the names of the labels. `table` holds what docs/formats.md lists under `tokens`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        table: Mapping[str, Any],
        classes: Sequence[str] = (),
        within: range | None = None,
    ) -> None:
        self.shards, self.table, self.classes = shards, dict(table), list(classes)
        self._ends = list(accumulate(shard.images for shard in shards))
        self._within = range(self._ends[-1] if self._ends else 0) if within is None else within

    @classmethod
    def of(cls, rows: Rows, classes: Sequence[str] = (), **table: Any) -> Tokens:
        """The tokens of rows in memory."""
        return cls([Memory(rows, classes)], table, classes)

    @property
    def model(self) -> str:
        """The fingerprint of the tokenizer that made the indices."""
        return str(self.table.get("model"))

    @property
    def source(self) -> str:
        """The fingerprint of the data set."""
        return str(self.table.get("source", ""))

    @property
    def precision(self) -> str:
        """The precision of the encoder."""
        return str(self.table.get("precision", ""))

    def __len__(self) -> int:
        return len(self._within)

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, number: slice) -> Tokens: ...

    def __getitem__(self, number: int | slice) -> dict[str, Any] | Tokens:
        if isinstance(number, slice):
            return Tokens(self.shards, self.table, self.classes, self._within[number])
        row = self._within[number]
        rows = self._read(row, row + 1)
        item: dict[str, Any] = {
            f"level{index}": level.stacked()[0] if isinstance(level, Ragged) else level[0]
            for index, level in enumerate(rows.levels)
        }
        item["name"] = rows.names[0]
        if rows.labels is not None:
            item["label"] = int(rows.labels[0])
        if rows.captions is not None:
            item["caption"] = rows.captions[0]
        return item

    def batch(self, start: int, stop: int) -> list[Tensor]:
        """The indices of images `start` to `stop - 1`, as `Tokenizer.decode` takes them."""
        return self.rows(start, stop).stacked()

    def rows(self, start: int, stop: int) -> Rows:
        """Everything about images `start` to `stop - 1`."""
        within = self._within[start:stop]
        if within.step == 1 and len(within):
            return self._read(within[0], within[-1] + 1)
        return together([self._read(row, row + 1) for row in within] or [self._read(0, 0)])

    @property
    def names(self) -> Sequence[str]:
        """The images' names."""
        return _Texts(self, "name")

    @property
    def captions(self) -> Sequence[str]:
        """The images' captions, empty for images without one."""
        return _Texts(self, "caption")

    @property
    def labels(self) -> Tensor | None:
        """The labels int64 `[N]`, -1 for images without one; None if no image has one."""
        return self._fact("label")

    @property
    def sizes(self) -> Tensor | None:
        """The originals' heights and widths `[N, 2]`, if known."""
        return self._fact("size")

    @property
    def views(self) -> Tensor | None:
        """The parts of the originals `[N, 6]`, if known; `Rows` describes them."""
        return self._fact("view")

    @property
    def levels(self) -> list[Tensor | Ragged]:
        """The indices of all images: `[N, h, w]` per level, or `Ragged` if grids differ."""
        return list(self.rows(0, len(self)).levels)

    @property
    def ragged(self) -> bool:
        """Whether images may have different grids."""
        firsts = [shard.level(0, 0, min(1, shard.images)) for shard in self.shards]
        shapes = {level.shape[1:] for level in firsts if isinstance(level, Tensor)}
        return len(shapes) > 1 or any(isinstance(level, Ragged) for level in firsts)

    def check(self, tokenizer: Tokenizer | None = None) -> None:
        """Read everything, a part at a time; `CheckpointError` if anything is damaged.

        Given a tokenizer, the indices must be among its codes.
        """
        for shard in self.shards:
            shard.check()
            step = _CHUNK
            for start in range(0, shard.images, step):
                rows = shard.rows(start, min(start + step, shard.images))
                for index in range(len(rows) if self.ragged and tokenizer else 1):
                    part = rows.of(index, index + 1) if self.ragged else rows
                    try:
                        if tokenizer is not None:
                            tokenizer.check_indices(part.stacked())
                    except GenkitError as error:
                        where = getattr(shard, "path", "the tokens")
                        raise CheckpointError(f"'{where}' is damaged: {error}") from error

    def _runs(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        for number in range(bisect_right(self._ends, start), len(self.shards)):
            first = self._ends[number] - self.shards[number].images
            if first >= stop:
                return
            if self.shards[number].images:
                yield (
                    self.shards[number],
                    max(start, first) - first,
                    min(stop, self._ends[number]) - first,
                )

    def _read(self, start: int, stop: int) -> Rows:
        parts = [shard.rows(low, high) for shard, low, high in self._runs(start, stop)]
        return together(parts or [self.shards[0].rows(0, 0)])

    def _fact(self, column: str) -> Tensor | None:
        parts = [shard.fact(column, 0, shard.images) for shard in self.shards]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return None
        return torch.cat(known)[self._within.start : self._within.stop : self._within.step]

    def _text(self, column: str, within: range) -> Iterator[str]:
        if within.step != 1:
            for row in within:
                yield from self._text(column, range(row, row + 1))
        else:
            for shard, low, high in self._runs(within.start, within.stop):
                for start in range(low, high, _CHUNK):
                    yield from shard.texts(column, start, min(start + _CHUNK, high))


class _Texts(Sequence[str]):
    """The names or captions of tokens, read when asked for."""

    def __init__(self, tokens: Tokens, column: str, within: range | None = None) -> None:
        self.tokens, self.column = tokens, column
        self.within = tokens._within if within is None else within

    def __len__(self) -> int:
        return len(self.within)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return _Texts(self.tokens, self.column, self.within[number])
        row = self.within[number]
        return next(self.tokens._text(self.column, range(row, row + 1)))

    def __iter__(self) -> Iterator[str]:
        return self.tokens._text(self.column, self.within)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, _Texts) else other)

    __hash__ = None  # type: ignore[assignment]


def save_tokens(tokens: Tokens, path: str | os.PathLike[str]) -> None:
    """Write tokens to one safetensors file."""
    write_rows(expanded(path), tokens.rows(0, len(tokens)), tokens.classes, tokens.table)


def load_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Tokens:
    """The tokens in a file or a folder of `genkit encode`, which are read when asked for.

    Raises `CheckpointError` for anything else and, given a `tokenizer`, for the indices of another
    tokenizer.
    """
    path = expanded(path)
    if is_folder(path):
        shards, table = _listed(path)
    else:
        shards = [_shard(path)]
        table = shards[0].table
    tokens = Tokens(shards, table, shards[0].classes)
    if tokenizer is not None and tokens.model != fingerprint(tokenizer):
        raise CheckpointError(f"the indices in '{path}' were made by another model")
    return tokens


def _shard(path: Path) -> FileShard | ParquetShard:
    return ParquetShard(path) if path.suffix == ".parquet" else FileShard(path)


def _listed(folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """The shards that the index of a folder lists, and its table."""
    if not (folder / INDEX).is_file():
        if (folder / UNFINISHED).is_file():
            raise CheckpointError(
                f"'{folder}' holds an encoding that has not ended: run its command again"
            )
        raise CheckpointError(f"'{folder}' holds no indices: it has no {INDEX}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        table, listed = index["tokens"], [(entry["file"], entry) for entry in index["shards"]]
        newer = index["schema"] > SCHEMA
        names = [str(name) for name, _ in listed if Path(name).name == name]
        if newer or not isinstance(table, dict) or len(names) != len(listed) or not listed:
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"'{folder / INDEX}' is damaged, or of a newer genkit") from error
    shards = [_shard(folder / name) for name in names]
    for shard, (name, entry) in zip(shards, listed, strict=True):
        if shard.images != entry.get("images"):
            raise CheckpointError(
                f"'{folder / name}' is damaged: it holds {shard.images} images where {INDEX} says "
                f"{entry.get('images')}"
            )
        shard.sha256 = entry.get("sha256")
        if shard.table.get("model") != table.get("model"):
            raise CheckpointError(f"the indices in '{folder / name}' were made by another model")
    return shards, table
