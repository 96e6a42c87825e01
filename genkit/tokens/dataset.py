"""The indices of a collection of images, from a file or from many shards, read when asked for."""

from __future__ import annotations

import hashlib
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
from genkit.tokens import INDEX, PARQUET_INDEX, UNFINISHED
from genkit.tokens.files import VERSION, FileShard, check_table, write_rows
from genkit.tokens.parquet import ParquetShard
from genkit.tokens.rows import Ragged, Rows, together
from genkit.tokens.shard import Memory, Shard

_CHUNK = 4096


class Tokens(Dataset[dict[str, Any]]):
    """Indices of N images, with names, labels and captions; a torch `Dataset`.

    `tokens[n]` is a dict with the indices of each level, `level0` the finest: int32 `[h, w]`, or
    `[h, w, Q]` with Q codebooks; with the `name`, the `label` (-1 for none) and the `caption`
    (empty for none). `tokens[a:b]` are the tokens of some images. Both, and `len`, `names` and
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
        return str(self.table.get("model", ""))

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
            # Some of the views of an image may be missing.
            table = {name: value for name, value in self.table.items() if name != "views"}
            return Tokens(self.shards, table, self.classes, self._within[number])
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no image {number} among {len(self)}")
        row = self._within[number]
        rows = self._read(row, row + 1)
        return {
            **{f"level{index}": level[0] for index, level in enumerate(rows.stacked())},
            "name": rows.names[0],
            "label": -1 if rows.labels is None else int(rows.labels[0]),
            "caption": rows.captions[0] if rows.captions else "",
        }

    def __repr__(self) -> str:
        return f"Tokens of {len(self)} images, model {self.model[:12]}"

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
        """The labels int64 `[N]`, -1 for images without one; None if none are stored."""
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
        firsts = [shard.level(0, 0, 1) for shard in self.shards if shard.images]
        shapes = {level.shape[1:] for level in firsts if isinstance(level, Tensor)}
        return len(shapes) > 1 or any(isinstance(level, Ragged) for level in firsts)

    def check(self, tokenizer: Tokenizer | None = None) -> str:
        """Read everything, a part at a time; returns a hash of the indices and the names.

        `CheckpointError` if anything is damaged. Given a tokenizer, the indices must be among its
        codes.
        """
        for shard in self.shards:
            shard.check()
        digest, ragged = hashlib.sha256(), self.ragged
        for start in range(0, len(self), _CHUNK):
            rows = self.rows(start, start + _CHUNK)
            digest.update("\n".join(rows.names).encode("utf-8", "backslashreplace"))
            for level in rows.levels:
                values = level.indices if isinstance(level, Ragged) else level
                digest.update(values.contiguous().numpy().tobytes())
            if tokenizer is None:
                continue
            step = 1 if ragged else len(rows)
            try:
                for first in range(0, len(rows), step):
                    tokenizer.check_indices(rows.of(first, first + step).stacked())
            except GenkitError as error:
                last = start + len(rows) - 1
                raise CheckpointError(
                    f"the indices of images {start} to {last} are damaged: {error}"
                ) from error
        return digest.hexdigest()

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
        within = self._within
        return torch.cat(known)[torch.arange(len(within)) * within.step + within.start]

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

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3]))
        return f"[{first}{', …' if len(self) > 3 else ''}] ({len(self)} texts)"


def save_tokens(tokens: Tokens, path: str | os.PathLike[str]) -> None:
    """Write tokens to one safetensors file."""
    # Old files hold names in the table, Parquet files classes.
    table = {key: tokens.table[key] for key in tokens.table if key not in ("names", "classes")}
    write_rows(expanded(path), tokens.rows(0, len(tokens)), tokens.classes, table)


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
    path = next((folder / n for n in (INDEX, PARQUET_INDEX) if (folder / n).is_file()), None)
    if path is None:
        if (folder / UNFINISHED).is_file():
            raise CheckpointError(f"'{folder}' holds an unfinished output: run its command again")
        raise CheckpointError(f"'{folder}' holds no indices: it has no {INDEX}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        table, listed = index["tokens"], [(entry["file"], entry) for entry in index["shards"]]
        names = [name for name, _ in listed if name and Path(name).name == name]
        images = [int(entry["images"]) for _, entry in listed]
        sound = 0 < len(listed) == len(set(names)) and sum(images) == table["images"]
        if not sound or index["schema"] > SCHEMA or table["version"] > VERSION:
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is damaged, or of a newer genkit") from error
    check_table(table, f"'{path}'")
    shards = []
    for name, count, (_, entry) in zip(names, images, listed, strict=True):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"the shard '{folder / name}' is missing: copy it again, {path.name} lists it"
            )
        shards.append(shard := _shard(folder / name))
        if shard.images != count:
            raise CheckpointError(
                f"'{folder / name}' is damaged: it holds {shard.images} images where {path.name} "
                f"says {count}"
            )
        shard.sha256 = entry.get("sha256")
        if shard.table.get("model") != table.get("model"):
            raise CheckpointError(f"the indices in '{folder / name}' were made by another model")
    return shards, table
