"""Parquet shards of indices, which Hugging Face `datasets`, Ray Data and pandas read.

Every image is a row; indices are nested lists. docs/formats.md has the columns. pyarrow is an
optional dependency.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.checkpoint.metadata import SCHEMA
from genkit.errors import CheckpointError, GenkitError
from genkit.files import replacing
from genkit.plugin.installing import to_install
from genkit.tokens.files import VERSION, check_table
from genkit.tokens.rows import Ragged, Rows
from genkit.tokens.shard import StoredShard

_VIEW = ("view", "top", "left", "height", "width", "mirrored")
_SIZE = ("original_height", "original_width")


def pyarrow() -> Any:
    """The module pyarrow with its Parquet reader; `GenkitError` if it is not installed."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise GenkitError(
            f"Parquet needs pyarrow, which is not installed: {to_install('genkit-vq[parquet]')}"
        ) from None


def write_parquet(path: Path, rows: Rows, classes: Sequence[str], table: Mapping[str, Any]) -> None:
    """Write rows to a Parquet file, whole or not at all; `GenkitError` for ragged rows."""
    built = arrow_table(rows, classes, table)
    with replacing(path) as temporary:
        pyarrow().parquet.write_table(built, temporary, compression="zstd")


def arrow_table(rows: Rows, classes: Sequence[str], table: Mapping[str, Any]) -> Any:
    """Rows as a `pyarrow.Table` with the columns and the metadata of Parquet shards."""
    arrow = pyarrow()
    levels = [level for level in rows.levels if isinstance(level, Tensor)]
    if len(levels) < len(rows.levels):
        raise GenkitError("Parquet shards need images of one size: write safetensors")
    columns: dict[str, Any] = {"name": arrow.array(_utf8(rows.names), arrow.string())}
    features: dict[str, Any] = {}
    if rows.labels is not None:
        labels = [None if label < 0 else label for label in rows.labels.tolist()]
        columns["label"] = arrow.array(labels, arrow.int64())
        if classes:
            features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    # Every shard has the same columns, which `datasets` requires.
    captions = _utf8(rows.captions or [""] * len(rows))
    columns["caption"] = arrow.array(captions, arrow.string())
    for names, values in ((_SIZE, rows.sizes), (_VIEW, rows.views)):
        for name, column in zip(names, [] if values is None else values.T, strict=False):
            kind = arrow.bool_() if name == "mirrored" else arrow.int32()
            columns[name] = arrow.array(column.tolist()).cast(kind)
    for index, level in enumerate(levels):
        columns[f"level{index}"] = _nested(arrow, level)
    info = {
        "schema": SCHEMA,
        "tokens": {**table, "version": VERSION, "images": len(rows), "classes": list(classes)},
    }
    return arrow.table(columns).replace_schema_metadata(
        {"genkit": json.dumps(info), "huggingface": json.dumps(_features(arrow, columns, features))}
    )


def _utf8(texts: Sequence[str]) -> list[str]:
    """Texts without lone surrogates, which file names may hold."""
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def _nested(arrow: Any, level: Tensor) -> Any:
    """A level as lists of lists, one per image."""
    values = arrow.array(level.flatten().numpy(), arrow.int32())
    for size in reversed(level.shape[1:]):
        ends = torch.arange(len(values) // size + 1, dtype=torch.int32) * size
        values = arrow.ListArray.from_arrays(ends.numpy(), values)
    return values


def _features(arrow: Any, columns: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The columns in the words of Hugging Face `datasets`."""

    def feature(kind: Any) -> dict[str, Any]:
        if arrow.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": str(kind), "_type": "Value"}

    return {
        "info": {
            "features": {
                name: known.get(name) or feature(column.type) for name, column in columns.items()
            }
        }
    }


@functools.lru_cache(maxsize=16)
def _read_column(path: Path, name: str, written: int) -> Any:
    """A column of a Parquet file; the ones read last are kept. `written` is the file's time."""
    found = pyarrow().parquet.read_table(path, columns=[name]).column(0).combine_chunks()
    return found.chunk(0) if hasattr(found, "chunk") else found


class ParquetShard(StoredShard):
    """A Parquet file of indices. A whole column is read when some of its rows are asked for.

    Reading in order is fast. Single rows in random order take a hundred times as long as from a
    safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrow = pyarrow()
        try:
            about = arrow.parquet.read_metadata(path)
            info = json.loads(about.metadata[b"genkit"])
            self.table: dict[str, Any] = dict(info["tokens"])
            if info["schema"] > SCHEMA or self.table["version"] > VERSION:
                raise ValueError
            self.classes = [str(name) for name in self.table.get("classes", [])]
            check_table(self.table, f"'{path}'")
        except FileNotFoundError:
            raise CheckpointError(f"there is no file '{path}'") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = "it is not a Parquet file of indices, or is of a newer genkit"
            raise self.damaged(why) from error
        self.images: int = about.num_rows
        self._names = about.schema.to_arrow_schema().names
        self.captions = "caption" in self._names
        self.levels = sum(name.startswith("level") for name in self._names)

    def texts(self, column: str, start: int, stop: int) -> list[str]:
        """The names or the captions of the images from `start` to `stop - 1`."""
        if column not in self._names:
            return [""] * (stop - start)
        return self._column(column).slice(start, stop - start).to_pylist()

    def fact(self, column: str, start: int, stop: int) -> Tensor | None:
        """The labels, sizes or views of these images."""
        names = {"size": _SIZE, "view": _VIEW}.get(column, (column,))
        if names[0] not in self._names:
            return None
        parts = [self._column(name).slice(start, stop - start) for name in names]
        values = torch.tensor(
            [[-1 if v is None else int(v) for v in part.to_pylist()] for part in parts],
            dtype=torch.int64,
        )
        return values[0] if column == "label" else values.T.to(torch.int32)

    def level(self, index: int, start: int, stop: int) -> Tensor | Ragged:
        """The indices of one level of these images."""
        if stop <= start and self.images:
            first = self.level(index, 0, 1)
            return first[:0] if isinstance(first, Tensor) else first.of(0, 0)
        values = self._column(f"level{index}").slice(start, stop - start)
        grids = []
        for _ in range(2):
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            grids.append(torch.tensor(lengths, dtype=torch.int32))
            values = values.flatten()
        shape: list[int] = []
        if hasattr(values, "value_lengths"):
            shape = [values.value_lengths()[0].as_py()] if len(values) else [1]
            values = values.flatten()
        flat = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy()).reshape(-1, *shape)
        rows = grids[0]
        columns = grids[1][(rows.cumsum(0) - rows).long()] if len(rows) else rows
        if len(rows) and ((rows == rows[0]).all() and (columns == columns[0]).all()):
            return flat.reshape(len(rows), int(rows[0]), int(columns[0]), *shape)
        return Ragged(flat, torch.stack([rows, columns], 1))

    def check(self) -> None:
        """`CheckpointError` if the file was changed or cannot be read."""
        super().check()
        self.rows(0, self.images)

    def _column(self, name: str) -> Any:
        try:
            return _read_column(self.path, name, self.path.stat().st_mtime_ns)
        except (OSError, ValueError) as error:
            raise self.damaged(str(error)) from error
