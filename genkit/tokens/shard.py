"""Rows of a collection that are read when asked for, from memory or a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from genkit.errors import CheckpointError
from genkit.files import sha256
from genkit.tokens.rows import Ragged, Rows


class Shard(ABC):
    """Some of a collection's rows. Columns are `name` and `caption`; `label`, `size` and `view`."""

    images: int
    levels: int
    classes: Sequence[str] = ()
    captions = False

    @abstractmethod
    def texts(self, column: str, start: int, stop: int) -> list[str]:
        """Names or captions of the rows from `start` to `stop - 1`; empty texts if missing."""

    @abstractmethod
    def fact(self, column: str, start: int, stop: int) -> Tensor | None:
        """Labels, sizes or views of these rows; None if missing."""

    @abstractmethod
    def level(self, index: int, start: int, stop: int) -> Tensor | Ragged:
        """The indices of one level of these rows."""

    def rows(self, start: int, stop: int) -> Rows:
        """All columns of these rows."""
        return Rows(
            [self.level(index, start, stop) for index in range(self.levels)],
            self.texts("name", start, stop),
            self.fact("label", start, stop),
            self.texts("caption", start, stop) if self.captions else None,
            self.fact("size", start, stop),
            self.fact("view", start, stop),
        )

    @abstractmethod
    def check(self) -> None:
        """`CheckpointError` if the rows are damaged."""


class Memory(Shard):
    """Rows in memory."""

    def __init__(self, rows: Rows, classes: Sequence[str]) -> None:
        self._rows, self.images, self.levels = rows, len(rows), len(rows.levels)
        self.classes, self.captions = classes, rows.captions is not None

    def texts(self, column: str, start: int, stop: int) -> list[str]:
        """Names or captions."""
        texts = self._rows.names if column == "name" else self._rows.captions
        return [""] * (stop - start) if texts is None else list(texts[start:stop])

    def fact(self, column: str, start: int, stop: int) -> Tensor | None:
        """Labels, sizes or views."""
        rows = self._rows
        found = {"label": rows.labels, "size": rows.sizes, "view": rows.views}[column]
        return None if found is None else found[start:stop]

    def level(self, index: int, start: int, stop: int) -> Tensor | Ragged:
        """The indices of one level."""
        level = self._rows.levels[index]
        return level.of(start, stop) if isinstance(level, Ragged) else level[start:stop]

    def check(self) -> None:
        """Nothing in memory is damaged."""


class StoredShard(Shard):
    """Rows in a file with a table, docs/formats.md's entries under `tokens`."""

    path: Path
    table: dict[str, Any]
    # From the index of the folder that holds the file.
    sha256: str | None = None

    def damaged(self, why: str) -> CheckpointError:
        """The error for a file with a wrong content."""
        return CheckpointError(f"'{self.path}' is damaged: {why}")

    def check(self) -> None:
        """`CheckpointError` if the file is not the one that the folder's index lists."""
        if self.sha256 is not None and sha256(self.path) != self.sha256:
            raise self.damaged("its SHA-256 is not the one in the folder's index; copy it again")
