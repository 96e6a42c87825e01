"""Images to indices: one engine for `genkit encode`, for Python, and for the cache of a prior."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genkit.checkpoint.metadata import SCHEMA
from genkit.checkpoint.model import description, load
from genkit.data.given import TorchImages
from genkit.devices import check_precision, own_device
from genkit.errors import GenkitError, OptionError
from genkit.evaluation.images import all_images, size_of
from genkit.files import expanded, sha256, write_text
from genkit.interfaces import Dataset, Split
from genkit.size import Resolution
from genkit.tokenizer import Tokenizer
from genkit.tokens import FORMATS, INDEX, PARQUET_INDEX, SHARD_SIZE
from genkit.tokens.dataset import Tokens, load_tokens
from genkit.tokens.engine import Engine
from genkit.tokens.files import VERSION, FileShard, join, write_rows
from genkit.tokens.output import Output
from genkit.tokens.parquet import ParquetShard, pyarrow, write_parquet
from genkit.tokens.rows import Rows

# Called with the number of rows that this process has encoded, and with its share of all rows.
Progress = Callable[[int, int], object]


def encode(
    tokenizer: Tokenizer | str | os.PathLike[str],
    images: Split | Dataset | str | os.PathLike[str] | Any,
    out: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 32,
    resolution: Resolution | None = None,
    views: int = 1,
    shard_size: int = SHARD_SIZE,
    format: str = FORMATS[0],
    workers: int = -1,
    device: str | None = None,
    mixed_precision: str = "no",
    tile: int | None = None,
    approximate_tiles: bool = False,
    progress: Progress = lambda done, total: None,
) -> Tokens:
    """Encode every readable image of a data set; returns the tokens.

    `tokenizer` is one, or a checkpoint. `images` are a data set's name, a folder or another
    location, a `Dataset` (encoded whole), a `Split`, or a torch `Dataset` of images. With `out`, a
    `.safetensors` file or a folder for shards, the tokens are written there as they come; the same
    call resumes after a kill, and the processes of a launcher share the work. Without it they stay
    in memory. The other arguments are the options of `genkit encode`.

    Raises `GenkitError` if `out` holds something else, or the encoding of other images or by
    another model.
    """
    for name, value in (("views", views), ("shard_size", shard_size), ("batch_size", batch_size)):
        check_number(name, value, 1)
    check_number("workers", workers, -1)
    if format not in FORMATS:
        raise OptionError(f"format can be {' or '.join(FORMATS)}, not {format!r}")
    if out is not None and not str(out):
        raise OptionError("out is empty: name a file or a folder")
    check_precision(mixed_precision)
    output = None if out is None else output_at(expanded(out), format)
    if output:
        output.check()
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load(tokenizer).to(own_device(device, mixed_precision))
    elif device is not None:
        tokenizer.to(own_device(device, mixed_precision))
    check_precision(mixed_precision, next(tokenizer.parameters()).device)
    split = _split(tokenizer, images, resolution)
    if getattr(split, "native", False):
        for option, wrong in (("--views", views > 1), ("--format parquet", format == "parquet")):
            if wrong:
                raise OptionError(f"{option} needs images of one size: give --resolution")
    engine = Engine(
        tokenizer, split, views, batch_size, workers, mixed_precision, tile, approximate_tiles
    )
    if output is None:
        done = _Counter(progress, 0, engine.rows)
        ((rows, problems),) = engine.encode([range(engine.rows)], done)
        table = {**engine.table(), "unreadable": engine.unreadable | problems}
        return Tokens.of(rows, split.classes, **table)
    return _Shards(engine, output, shard_size, format).encode(progress)


def output_at(out: Path, format: str) -> Output:
    """The place for shards of a format; `OptionError` if they would not fit it."""
    ending = out.suffix.lower()
    if format == "parquet":
        pyarrow()
    if ending == ".parquet" or (ending == ".safetensors" and format == "parquet"):
        raise OptionError(f"--format parquet writes a folder of shards: '{out}' names a file")
    return Output(out, ending == ".safetensors")


def check_number(name: str, value: object, least: int) -> None:
    """`OptionError` unless an argument is a whole number and large enough."""
    if type(value) is not int or value < least:
        raise OptionError(f"{name} must be a whole number of {least} or more, not {value!r}")


def _split(tokenizer: Tokenizer, images: Any, resolution: Resolution | None) -> Split:
    """The images that `encode` was given."""
    if not isinstance(images, (str, os.PathLike)) and hasattr(images, "fingerprint"):
        if resolution is not None:
            raise OptionError("the data set has a size already: leave out resolution")
        whole: Split = images.split("all") if hasattr(images, "split") else images
        return whole
    info = description(tokenizer)
    size = size_of(info, resolution)
    if isinstance(images, (str, os.PathLike)):
        return all_images(os.fspath(images), size, once=True, model=info)
    return TorchImages(images, size).split("all")


class _Counter:
    """Adds up the rows of batches and reports the sum."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        progress(done, total)

    def __call__(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


class _Shards:
    """The shards of an encoding: which are missing, and what they become in the end."""

    def __init__(self, engine: Engine, output: Output, shard_size: int, format: str) -> None:
        self.engine, self.output, self.format = engine, output, format
        self.table = engine.table()
        self.parts = [
            range(start, min(start + shard_size, engine.rows))
            for start in range(0, engine.rows, shard_size)
        ]
        self.plan = {
            "command": "encode",
            "version": VERSION,
            **{key: self.table[key] for key in ("model", "resolution", "views", "precision")},
            "set of images": self.table["source"],
            "number of images": len(engine.split),
            "pixels": engine.pixels,
            "first and last image": [
                engine.split.name(0),
                engine.split.name(len(engine.split) - 1),
            ],
            "shard size": shard_size,
            "format": format,
            **({"tiles": self.table["tiles"]} if engine.approximated else {}),
        }

    def encode(self, progress: Progress) -> Tokens:
        output = self.output
        with output.claimed(self.plan) as unfinished:
            if unfinished:
                own = output.own(len(self.parts))
                missing = [number for number in own if not self._path(number).exists()]
                total = sum(len(self.parts[number]) for number in own)
                left = sum(len(self.parts[number]) for number in missing)
                count = _Counter(progress, total - left, total)
                made = self.engine.encode([self.parts[number] for number in missing], count)
                for number, (rows, problems) in zip(missing, made, strict=True):
                    self._write(number, rows, problems)
                if output.wait(len(self.parts), self._is_there):
                    self._finish()
                    output.clear()
        output.wait_for_first()
        return load_tokens(output.out)

    def _path(self, number: int) -> Path:
        return self.output.folder / f"{number:05d}.{self.format}"

    def _is_there(self, number: int) -> bool:
        return self._path(number).exists()

    def _write(self, number: int, rows: Rows, problems: Mapping[str, str]) -> None:
        table = {**self.table, **({"unreadable": dict(problems)} if problems else {})}
        write = write_parquet if self.format == "parquet" else write_rows
        try:
            write(self._path(number), rows, self.engine.split.classes, table)
        except GenkitError as error:
            done = sum(map(self._is_there, range(len(self.parts))))
            raise GenkitError(
                f"{error}; {done} of {len(self.parts)} shards are complete and are kept: make "
                "space and start again"
            ) from error

    def _finish(self) -> None:
        """Join the shards, or list them."""
        paths = [self._path(number) for number in range(len(self.parts))]
        kind = ParquetShard if self.format == "parquet" else FileShard
        shards: list[Any] = [kind(path) for path in paths]
        unreadable = dict(self.engine.unreadable)
        for shard in shards:
            unreadable |= shard.table.get("unreadable", {})
        table = {**self.table, "unreadable": unreadable}
        if self.output.whole:
            join(shards, self.output.out, table)
            return
        index = {
            "schema": SCHEMA,
            "tokens": {
                "version": VERSION,
                "images": sum(shard.images for shard in shards),
                **table,
            },
            "classes": len(self.engine.split.classes),
            "shards": [
                {"file": path.name, "images": shard.images, "sha256": sha256(path)}
                for path, shard in zip(paths, shards, strict=True)
            ],
        }
        name = PARQUET_INDEX if self.format == "parquet" else INDEX
        write_text(self.output.folder / name, json.dumps(index, indent=1) + "\n")
