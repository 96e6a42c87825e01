"""Images to indices: one engine for `genkit encode`, for Python, and for the cache of a prior."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from genkit.checkpoint.metadata import SCHEMA
from genkit.checkpoint.model import description, fingerprint, load
from genkit.data.given import TorchImages
from genkit.data.loader import stream, workers_of
from genkit.data.reading import none_readable, read
from genkit.data.workers import in_background
from genkit.devices import launched, mixed, own_device, precision_text
from genkit.errors import GenkitError, OptionError
from genkit.evaluation.images import all_images, resolution_of
from genkit.files import expanded, write_text
from genkit.images import Pixels, from_uint8
from genkit.interfaces import Dataset, Split, View
from genkit.plugin.options import Part
from genkit.tokenizer import Tokenizer
from genkit.tokens.dataset import INDEX, Tokens, load_tokens
from genkit.tokens.files import FileShard, hash_of, join, write_rows
from genkit.tokens.output import Output
from genkit.tokens.parquet import ParquetShard, pyarrow, write_parquet
from genkit.tokens.rows import Rows, together

# A killed encoding repeats at most one shard for each process.
SHARD_SIZE = 4096
FORMATS = ("safetensors", "parquet")
# Called with the number of rows that this process has encoded, and with its share of all rows.
Progress = Callable[[int, int], object]


class _Facts(NamedTuple):
    """What is known about the images of a batch, apart from their pixels."""

    names: list[str]
    labels: list[int | None]
    captions: list[str | None]
    # Number of the view, and the part of the original that it shows.
    views: list[tuple[int, View | None]]
    problems: dict[str, str]


class Reader:
    """Reads rows of an encoding: row r is view `r % views` of image `r // views`.

    View 0 is the image as it is evaluated; the others are cropped and mirrored at random.
    """

    def __init__(self, split: Split, views: int) -> None:
        self.split, self.views = split, views

    def read(self, rows: range) -> tuple[Pixels, _Facts]:
        """The pixels of the rows that can be read, and what is known about them."""
        problems: dict[str, str] = {}
        kept, pixels = self._pixels(rows, problems)
        split, find = self.split, getattr(self.split, "view", None)
        names, labels, captions, views = [], [], [], []
        for row in kept:
            image, view = divmod(row, self.views)
            names.append(split.name(image))
            labels.append(split.label(image))
            captions.append(split.caption(image))
            views.append((view, find(image, _seed(image, view)) if find else None))
        return pixels, _Facts(names, labels, captions, views, problems)

    def _pixels(self, rows: range, problems: dict[str, str]) -> tuple[list[int], Pixels]:
        """The readable rows and their pixels."""
        parts = []
        for plain in (True, False):
            chosen = [row for row in rows if (row % self.views == 0) == plain]
            if chosen:
                images = [row // self.views for row in chosen]
                seeds = None if plain else [_seed(*divmod(row, self.views)) or 0 for row in chosen]
                kept, pixels = read(self.split, images, seeds, problems)
                parts.append(([chosen[place] for place in kept], pixels))
        if len(parts) == 1:
            return parts[0]
        full = [part for part in parts if part[0]] or parts[:1]
        every = [row for part, _ in full for row in part]
        order = np.argsort(every)
        return [every[place] for place in order], np.concatenate([p for _, p in full])[order]


def _seed(image: int, view: int) -> int | None:
    """The seed of a random view; None for view 0. More views leave the first ones as they are."""
    return view << 40 | image if view else None


class _Batches(Sampler[range]):
    """The rows of some parts in batches, none of which spans two parts."""

    def __init__(self, parts: Sequence[range], batch_size: int) -> None:
        self.parts, self.batch_size = parts, batch_size

    def __iter__(self) -> Iterator[range]:
        for part in self.parts:
            for start in range(0, len(part), self.batch_size):
                yield part[start : start + self.batch_size]


@dataclass
class Engine:
    """Encodes rows of a split with a tokenizer."""

    tokenizer: Tokenizer
    split: Split
    views: int
    batch_size: int
    workers: int
    mixed_precision: str

    def __post_init__(self) -> None:
        self.device = next(self.tokenizer.parameters()).device
        self.reader = Reader(self.split, self.views)
        # Files that were found unreadable while the data set was built.
        self.unreadable = dict(self.split.problems)
        self.size = self._first()
        self.rows = len(self.split) * self.views

    def _first(self) -> tuple[int, int]:
        """Height and width of the images; checks that views differ."""
        problems: dict[str, str] = {}
        for image in range(len(self.split)):
            views = range(image * self.views, (image + 1) * self.views)
            pixels, facts = self.reader.read(views)
            problems |= facts.problems
            if len(pixels) < self.views:
                continue
            if self.views > 1 and all(np.array_equal(pixels[0], other) for other in pixels[1:]):
                raise OptionError(
                    f"--views {self.views}: all views of '{facts.names[0]}' are equal, because the "
                    "data set neither crops nor mirrors it; give it options, such as "
                    "'FOLDER?short_side=80&flip=true'"
                )
            return pixels.shape[1], pixels.shape[2]
        raise none_readable({**self.split.problems, **problems}, "images")

    def table(self) -> dict[str, Any]:
        """The facts that hold for all rows, as token files have them."""
        about = description(self.tokenizer)
        options = self.tokenizer.options
        parts = [
            (field.name, getattr(options, field.name)) for field in dataclasses.fields(options)
        ]
        return {
            "model": fingerprint(self.tokenizer),
            "components": {name: part.name for name, part in parts if isinstance(part, Part)},
            "levels": [
                {key: level[key] for key in level if key != "channels"} for level in about["levels"]
            ],
            "source": self.split.fingerprint,
            "resolution": list(self.size),
            "views": self.views,
            "precision": precision_text(self.tokenizer, self.device, self.mixed_precision),
        }

    def encode(
        self, parts: Sequence[range], progress: Callable[[int], object] = lambda count: None
    ) -> Iterator[tuple[Rows, dict[str, str]]]:
        """The rows of each part that could be read, with the files that could not."""
        workers = workers_of(self.workers, launched()[1])
        shape = self.batch_size, *self.size, self.split.channels
        batches = stream(self.reader.read, _Batches(parts, self.batch_size), shape, workers)
        encoded = self._encoded(batches if workers else in_background(batches))
        for part in parts:
            done: list[Rows] = []
            problems: dict[str, str] = {}
            for start in range(0, len(part), self.batch_size):
                rows, new = next(encoded)
                done.append(rows)
                problems |= new
                progress(min(self.batch_size, len(part) - start))
            yield together(done), problems

    def _encoded(self, batches: Iterator[Any]) -> Iterator[tuple[Rows, dict[str, str]]]:
        """The rows of each batch, waited for when the device has the next batch to work on."""
        before: tuple[list[Tensor], Any, _Facts] | None = None
        for pixels, facts in batches:
            levels, ready = self._indices(pixels)
            if before:
                yield self._collected(*before)
            before = levels, ready, facts
        if before:
            yield self._collected(*before)

    def _indices(self, pixels: Tensor) -> tuple[list[Tensor], Any]:
        """The indices of a batch on their way to the CPU, and an event that says when they came."""
        if not len(pixels):
            count = [number for number, _ in self.tokenizer.codebooks]
            shapes = [
                (0, *level.grid(*self.size), *([each] if each > 1 else []))
                for level, each in zip(self.tokenizer.levels, count, strict=True)
            ]
            return [torch.empty(shape, dtype=torch.int32) for shape in shapes], None
        cuda = self.device.type == "cuda"
        with mixed(self.device, self.mixed_precision):
            images = from_uint8(pixels.to(self.device, non_blocking=cuda))
            indices = self.tokenizer.encode(images)
        levels = [level.to(torch.int32).to("cpu", non_blocking=cuda) for level in indices]
        ready = torch.cuda.Event() if cuda else None
        if ready:
            ready.record()
        return levels, ready

    def _collected(
        self, levels: list[Tensor], ready: Any, facts: _Facts
    ) -> tuple[Rows, dict[str, str]]:
        if ready:
            ready.synchronize()
        known = [view for _, view in facts.views]
        empty = View((0, 0), (0, 0, 0, 0), False)
        views = [(number, view or empty) for number, view in facts.views]
        placed = self.views > 1 or None not in known
        return Rows(
            levels,
            facts.names,
            torch.tensor([-1 if label is None else label for label in facts.labels]).long(),
            [text or "" for text in facts.captions] if any(facts.captions) else None,
            _table([view.size for _, view in views], 2) if None not in known else None,
            _table([(n, *view.crop, view.mirrored) for n, view in views], 6) if placed else None,
        ), facts.problems


def _table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, columns)


def encode(
    tokenizer: Tokenizer | str | os.PathLike[str],
    images: Split | Dataset | str | os.PathLike[str] | Any,
    out: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 32,
    resolution: int | None = None,
    views: int = 1,
    shard_size: int = SHARD_SIZE,
    format: str = "safetensors",
    workers: int = -1,
    device: str | None = None,
    mixed_precision: str = "no",
    progress: Progress = lambda done, total: None,
) -> Tokens:
    """Encode every readable image of a data set; returns the tokens.

    `tokenizer` is one, or a checkpoint. `images` are a data set's name, a folder or another
    location, a `Dataset` (encoded whole), a `Split`, or a torch `Dataset` of images. With `out`, a
    `.safetensors` file or a folder for shards, the tokens are written there as they come; the same
    call goes on after a kill, and the processes of a launcher share the work. Without it they stay
    in memory. The other arguments are the options of `genkit encode`.

    Raises `GenkitError` if `out` holds something else, or the encoding of other images or by
    another model.
    """
    _check(views, shard_size, batch_size, format)
    output = None if out is None else output_at(expanded(out), format)
    if output:
        output.check()
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load(tokenizer).to(own_device(device, mixed_precision))
    elif device is not None:
        tokenizer.to(own_device(device, mixed_precision))
    split = _split(tokenizer, images, resolution)
    engine = Engine(tokenizer, split, views, batch_size, workers, mixed_precision)
    if output is None:
        done = _Counter(progress, 0, engine.rows)
        ((rows, problems),) = engine.encode([range(engine.rows)], done)
        table = {**engine.table(), "unreadable": engine.unreadable | problems}
        return Tokens.of(rows, split.classes, **table)
    return _Shards(engine, output, shard_size, format).encode(progress)


def output_at(out: Path, format: str) -> Output:
    """The place for shards of a format; `OptionError` if they would not fit it."""
    whole = out.suffix == ".safetensors"
    if format == "parquet":
        pyarrow()
        if out.suffix in (".safetensors", ".parquet"):
            raise OptionError(f"--format parquet writes a folder of shards: '{out}' names a file")
    return Output(out, whole)


def _check(views: int, shard_size: int, batch_size: int, format: str) -> None:
    for name, value in (("views", views), ("shard_size", shard_size), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise OptionError(f"{name} must be a whole number above 0, not {value!r}")
    if format not in FORMATS:
        raise OptionError(f"format can be {' or '.join(FORMATS)}, not {format!r}")


def _split(tokenizer: Tokenizer, images: Any, resolution: int | None) -> Split:
    """The images that `encode` was given."""
    if hasattr(images, "split") and not isinstance(images, str):
        whole: Split = images.split("all")
        return whole
    if hasattr(images, "images") and hasattr(images, "fingerprint"):
        return images
    size = (resolution_of(description(tokenizer), resolution),) * 2
    if isinstance(images, (str, os.PathLike)):
        return all_images(os.fspath(images), size, once=True)
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
            **{key: self.table[key] for key in ("model", "resolution", "views", "precision")},
            "set of images": self.table["source"],
            "number of images": len(engine.split),
            "first or last image": [engine.split.name(0), engine.split.name(len(engine.split) - 1)],
            "shard size": shard_size,
            "format": format,
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
                if output.wait(lambda: all(map(self._is_there, range(len(self.parts))))):
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
                f"{error}; {done} of {len(self.parts)} shards are complete, and the same command "
                "goes on from there"
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
                **{key: shards[0].table[key] for key in ("version",)},
                "images": sum(shard.images for shard in shards),
                **table,
            },
            "classes": len(self.engine.split.classes),
            "shards": [
                {"file": path.name, "images": shard.images, "sha256": hash_of(path)}
                for path, shard in zip(paths, shards, strict=True)
            ],
        }
        write_text(self.output.folder / INDEX, json.dumps(index, indent=1) + "\n")
