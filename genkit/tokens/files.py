"""One safetensors file of indices: writing it, reading any of its rows, joining several.

docs/formats.md has the schema. Rows are read by their place in the file, so that a file of any size
takes as much memory as the rows asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.checkpoint.metadata import SCHEMA, read_genkit
from genkit.errors import CheckpointError, GenkitError
from genkit.files import replacing
from genkit.size import NATIVE
from genkit.tokens.rows import Ragged, Rows, packed, places, unpacked
from genkit.tokens.shard import StoredShard

# The version of the tensors' layout. Files without a version hold names in their metadata.
VERSION = 2
_DTYPES = {"I32": torch.int32, "I64": torch.int64, "U8": torch.uint8}
_SIZES = {"I32": 4, "I64": 8, "U8": 1}
_TEXTS = ("name", "caption", "class")
# Optional tensors with one row per image: dtype, and shape of a row.
_FACTS: dict[str, tuple[str, list[int]]] = {
    "label": ("I64", []),
    "size": ("I32", [2]),
    "view": ("I32", [6]),
}
# A tensor of a file: dtype, shape, and its bytes in pieces.
Content = tuple[str, list[int], Iterable[bytes]]
_PIECE = 2**24


def write_file(path: Path, tensors: Mapping[str, Content], table: Mapping[str, Any]) -> None:
    """Write a safetensors file with `table` as the metadata's `tokens`, whole or not at all.

    Equal contents give equal bytes. The safetensors library needs all tensors in memory, and writes
    the metadata in a random order.
    """
    info = json.dumps({"schema": SCHEMA, "tokens": table})
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "genkit": info}}
    end = 0
    # Larger values first, so that each tensor begins at a multiple of its value's size.
    order = sorted(tensors, key=lambda name: (-_SIZES[tensors[name][0]], name))
    for name in order:
        kind, shape, _ = tensors[name]
        start, end = end, end + _SIZES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in tensors[name][2]:
                file.write(piece)


def write_rows(path: Path, rows: Rows, classes: Sequence[str], table: Mapping[str, Any]) -> None:
    """Write rows to a token file."""
    tensors: dict[str, Content] = {}

    def put(name: str, kind: str, values: Tensor) -> None:
        values = values.to("cpu", _DTYPES[kind]).contiguous()
        tensors[name] = kind, list(values.shape), [values.numpy().tobytes()]

    for index, level in enumerate(rows.levels):
        if isinstance(level, Ragged):
            put(f"level{index}.grid", "I32", level.grids)
            level = level.indices
        put(f"level{index}", "I32", level)
    for name, texts in zip(_TEXTS, (rows.names, rows.captions, classes or None), strict=True):
        if texts is not None:
            content, offsets = packed(texts)
            tensors[f"{name}.bytes"] = "U8", [len(content)], [content]
            put(f"{name}.offsets", "I64", offsets)
    facts = {"label": rows.labels, "size": rows.sizes, "view": rows.views}
    for name, values in facts.items():
        if values is not None:
            put(name, _FACTS[name][0], values)
    write_file(path, tensors, {**table, "version": VERSION, "images": len(rows)})


class FileShard(StoredShard):
    """A token file. Creating one reads its header and the names of the classes alone."""

    def __init__(self, path: Path) -> None:
        info, self.entries = read_genkit(path)
        table = info.get("tokens")
        if not isinstance(table, dict) or "level0" not in self.entries:
            raise CheckpointError(f"'{path}' holds no indices: genkit encode writes files that do")
        self.path, self.table = path, table
        if type(version := table.get("version", 1)) is not int or version > VERSION:
            raise CheckpointError(
                f"'{path}' has version {version!r} of token files; this genkit reads up to "
                f"{VERSION}: use a newer genkit"
            )
        # Version 1 kept the names in the metadata.
        names = table.get("names") if version == 1 else None
        self.names = names if isinstance(names, list) else None
        count = len(names) if isinstance(names, list) else table.get("images")
        if type(count) is not int:
            raise CheckpointError(f"'{path}' holds no indices: genkit encode writes files that do")
        self.images: int = count
        if wrong := _wrong(self.entries, count, version):
            raise self.damaged(wrong)
        if self.names and not all(isinstance(name, str) for name in self.names):
            raise self.damaged("its names are not text")
        with path.open("rb") as file:
            self._start = 8 + int.from_bytes(file.read(8), "little")
        check_table(table, f"'{path}'")
        self.levels = sum(name.startswith("level") and "." not in name for name in self.entries)
        self.captions = "caption.offsets" in self.entries
        if "class.offsets" in self.entries:
            classes = self.entries["class.offsets"]["shape"][0] - 1
            self.classes = self._texts("class", 0, classes)
        self._grids: dict[int, tuple[Tensor, list[int]]] = {}

    def texts(self, column: str, start: int, stop: int) -> list[str]:
        """The names or the captions of the images from `start` to `stop - 1`."""
        if column == "name" and self.names is not None:
            return self.names[start:stop]
        if f"{column}.offsets" not in self.entries:
            return [""] * (stop - start)
        return self._texts(column, start, stop)

    def fact(self, column: str, start: int, stop: int) -> Tensor | None:
        """The labels, sizes or views of these images."""
        return self.values(column, start, stop) if column in self.entries else None

    def level(self, index: int, start: int, stop: int) -> Tensor | Ragged:
        """The indices of one level of these images."""
        name = f"level{index}"
        if f"{name}.grid" not in self.entries:
            return self.values(name, start, stop)
        grids, ends = self._grids.get(index) or self._read_grids(index)
        return Ragged(self.values(name, ends[start], ends[stop]), grids[start:stop])

    def values(self, name: str, start: int, stop: int) -> Tensor:
        """The rows `start` to `stop - 1` of a tensor."""
        entry = self.entries[name]
        kind, row = _DTYPES[entry["dtype"]], entry["shape"][1:]
        content = bytearray(b"".join(self.pieces(name, start, stop)))
        values = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return values.reshape(stop - start, *row)

    def pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of rows of a tensor, a few megabytes at a time."""
        entry = self.entries[name]
        size = _SIZES[entry["dtype"]] * math.prod(entry["shape"][1:])
        left = (stop - start) * size
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._start + entry["data_offsets"][0] + start * size)
                while left:
                    piece = file.read(min(left, _PIECE))
                    if not piece:
                        raise self.damaged("it was cut short")
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise CheckpointError(f"'{self.path}' cannot be read: {error.strerror}") from error

    def check(self) -> None:
        """`CheckpointError` if the file was changed, or its texts, labels or grids are damaged."""
        super().check()
        for column in ("name", "caption"):
            for start in range(0, self.images, 2**16):
                self.texts(column, start, min(self.images, start + 2**16))
        labels, classes = self.fact("label", 0, self.images), self.classes
        if labels is not None and self.images:
            # Labels of a data set whose classes have no names may be any numbers.
            most = len(classes) if classes else labels.max() + 1
            if ((labels < -1) | (labels >= most)).any():
                raise self.damaged("its labels are not numbers of its classes")
        for index in range(self.levels):
            self.level(index, 0, 0)

    def _texts(self, column: str, start: int, stop: int) -> list[str]:
        if stop <= start:
            return []
        offsets = self.values(f"{column}.offsets", start, stop + 1).tolist()
        whole = self.entries[f"{column}.bytes"]["shape"][0]
        first, last = offsets[0], offsets[-1]
        final = self.entries[f"{column}.offsets"]["shape"][0] - 1
        ends = (start > 0 or first == 0) and (stop < final or last == whole)
        if not ends or not 0 <= first <= last <= whole:
            raise self.damaged(f"the offsets of its {column}s do not match their bytes")
        content = b"".join(self.pieces(f"{column}.bytes", first, last))
        try:
            return unpacked(content, [offset - first for offset in offsets])
        except GenkitError as error:
            raise self.damaged(f"of its {column}s the {error}") from error

    def _read_grids(self, index: int) -> tuple[Tensor, list[int]]:
        grids = self.values(f"level{index}.grid", 0, self.images)
        count = self.entries[f"level{index}"]["shape"][0]
        sizes = places(grids)
        # Compare each grid too: the sum of huge ones could overflow to the right number.
        if (grids < 1).any() or (sizes > count).any() or sizes.sum() != count:
            raise self.damaged("its grids do not match its indices")
        self._grids[index] = grids, [0, *sizes.cumsum(0).tolist()]
        return self._grids[index]


def check_table(table: Mapping[str, Any], where: str) -> None:
    """`CheckpointError` if an entry of a token file's table has a wrong type."""

    def number(value: Any) -> bool:
        return type(value) is int and value > 0

    def texts(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())

    tests: dict[str, Callable[[Any], bool]] = {
        "components": texts,
        "unreadable": texts,
        "views": number,
        "sampled": lambda value: (
            isinstance(value, dict)
            and isinstance(value.get("prior"), str)
            and type(value.get("seed")) is int
            and isinstance(value.get("rules"), dict)
        ),
        "resolution": lambda value: (
            value == NATIVE
            or (isinstance(value, list) and len(value) == 2 and all(map(number, value)))
        ),
        "levels": lambda value: (
            isinstance(value, list)
            and all(
                isinstance(level, dict)
                and number(level.get("codebook_size"))
                and number(level.get("codebooks", 1))
                for level in value
            )
        ),
    }
    for name, fits in tests.items():
        if name in table and not fits(table[name]):
            raise CheckpointError(f"{where} is damaged: its entry '{name}' is wrong")


def join(shards: Sequence[FileShard], path: Path, table: Mapping[str, Any]) -> None:
    """Write the rows of all shards, in order, to one token file, a few megabytes at a time."""
    count = sum(shard.images for shard in shards)
    tensors: dict[str, Content] = {}
    captions = any("caption.offsets" in shard.entries for shard in shards)
    for name, entry in shards[0].entries.items():
        kind, shape = entry["dtype"], entry["shape"]
        if f"{name}.grid" in shards[0].entries:
            total = sum(_size(shard, name) for shard in shards)
            tensors[name] = kind, [total, *shape[1:]], _pieces(shards, name)
        elif "." not in name or name.endswith(".grid"):
            tensors[name] = kind, [count, *shape[1:]], _pieces(shards, name)
        elif name.startswith("class."):
            tensors[name] = kind, shape, shards[0].pieces(name, 0, shape[0])
    for column in ["name", *(["caption"] if captions else [])]:
        total = sum(_size(shard, f"{column}.bytes") for shard in shards)
        tensors[f"{column}.bytes"] = "U8", [total], _pieces(shards, f"{column}.bytes")
        tensors[f"{column}.offsets"] = "I64", [count + 1], _offsets(shards, column)
    write_file(path, tensors, {**table, "version": VERSION, "images": count})


def _pieces(shards: Sequence[FileShard], name: str) -> Iterator[bytes]:
    for shard in shards:
        if name in shard.entries:
            yield from shard.pieces(name, 0, _size(shard, name))


def _offsets(shards: Sequence[FileShard], column: str) -> Iterator[bytes]:
    """The offsets of the texts of all shards; a shard without texts has empty ones."""
    yield bytes(8)
    before = 0
    for shard in shards:
        ends = torch.zeros(shard.images, dtype=torch.int64)
        if f"{column}.offsets" in shard.entries:
            ends = shard.values(f"{column}.offsets", 1, shard.images + 1)
        yield (ends + before).numpy().tobytes()
        before += _size(shard, f"{column}.bytes")


def _size(shard: FileShard, name: str) -> int:
    """The number of rows of a tensor; 0 if the file lacks it."""
    return int(shard.entries[name]["shape"][0]) if name in shard.entries else 0


def _wrong(entries: Mapping[str, Any], count: int, version: int) -> str:
    """The first fault in the tensors' dtypes and shapes, or an empty text."""
    forms = {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        if _SIZES.get(entry["dtype"], 0) * math.prod(entry["shape"]) != end - start:
            return f"its tensor '{name}' does not have the size of its shape"
    levels = sum(name.startswith("level") and name[5:].isdecimal() for name in forms)
    known: set[str] = set()
    for level in (f"level{index}" for index in range(levels)):
        known |= {level, f"{level}.grid"}
        kind, shape = forms.get(level, ("", []))
        if f"{level}.grid" in forms:
            fits = len(shape) in (1, 2) and forms[f"{level}.grid"] == ("I32", [count, 2])
        else:
            fits = len(shape) in (3, 4) and shape[0] == count and all(shape[1:])
        if kind != "I32" or not fits:
            return (
                f"its indices are not int32 [{count}, h, w] or [{count}, h, w, codebooks], or, "
                "with a grid per image, [values]"
            )
    if version == 1:
        return "" if forms.keys() <= known else "it holds tensors that are not indices"
    for name, (kind, row) in _FACTS.items():
        known.add(name)
        if name in forms and forms[name] != (kind, [count, *row]):
            return f"its {name} does not have the shape {[count, *row]}"
    for name in _TEXTS:
        known |= (pair := {f"{name}.bytes", f"{name}.offsets"})
        if found := pair & forms.keys():
            kind, shape = forms.get(f"{name}.offsets", ("", []))
            rows = shape[0] if len(shape) == 1 else 0
            sound = kind == "I64" and (rows > 0 if name == "class" else rows == count + 1)
            text = forms.get(f"{name}.bytes", ("", []))
            if len(found) < 2 or not sound or text[0] != "U8" or len(text[1]) != 1:
                return f"its {name}s are not bytes with {count + 1} offsets"
    if "name.bytes" not in forms:
        return "it does not name its images"
    return "" if forms.keys() <= known else "it holds tensors with unknown names"
