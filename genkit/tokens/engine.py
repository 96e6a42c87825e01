"""The engine: reads the images of a split in batches, and encodes them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from genkit.checkpoint.model import description, fingerprint
from genkit.data.loader import stream, workers_of
from genkit.data.reading import none_readable, read
from genkit.data.workers import in_background
from genkit.devices import launched, mixed, precision_text
from genkit.errors import OptionError, UnreadableImage
from genkit.images import Pixels, from_pixels, is_deep
from genkit.interfaces import Split, View
from genkit.ops.precision import float32_by_default
from genkit.reach import reach
from genkit.size import NATIVE
from genkit.tiles import check_tiles, encode_tiles, is_whole, pad_pixels
from genkit.tokenizer import Tokenizer
from genkit.tokens import TILE
from genkit.tokens.rows import Ragged, Rows, as_ragged, together


class _Facts(NamedTuple):
    """The names, labels and other facts of the images of a batch."""

    names: list[str]
    labels: list[int | None]
    captions: list[str | None]
    # Number of the view, and the part of the original that it shows.
    views: list[tuple[int, View | None]]
    problems: dict[str, str]


# At least as many images are hashed, if there are so many.
_HASHED = 8
# Batches that are encoded at a time. On a CPU each uses its share of the threads, which takes less
# time than one batch on all threads, since these wait for each other in every layer. On a GPU one
# batch is copied and collected while the other is computed.
_LANES = 2
_UNKNOWN = View((0, 0), (0, 0, 0, 0), False)


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
        split = self.split
        about = {
            image: (split.name(image), split.label(image), split.caption(image))
            for image in dict.fromkeys(row // self.views for row in kept)
        }
        places, views = [], []
        for place, row in enumerate(kept):
            image, view = divmod(row, self.views)
            try:
                shown = self._view(image, view, pixels)
            except UnreadableImage as error:  # The file has changed since its pixels were read.
                problems[error.name] = error.reason
                continue
            places.append(place)
            views.append((view, shown))
        facts = [about[kept[place] // self.views] for place in places]
        pixels = pixels if len(places) == len(kept) else pixels[places]
        return pixels, _Facts(
            [name for name, _, _ in facts],
            [label for _, label, _ in facts],
            [caption for _, _, caption in facts],
            views,
            problems,
        )

    def _view(self, image: int, view: int, pixels: Pixels) -> View | None:
        """The part of its original that a view shows, if known."""
        if getattr(self.split, "native", False):
            height, width = pixels.shape[1:3]
            return View((height, width), (0, 0, height, width), False)
        find = getattr(self.split, "view", None)
        return find(image, _seed(image, view)) if find else None

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


def made_by(tokenizer: Tokenizer) -> dict[str, Any]:
    """The facts on the tokenizer that token files have."""
    about = description(tokenizer)
    return {
        "model": fingerprint(tokenizer),
        "components": {kind: each["name"] for kind, each in about["components"].items()},
        "levels": [
            {key: level[key] for key in level if key != "channels"} for level in about["levels"]
        ],
    }


class _Batches(Sampler[range]):
    """The rows of some parts in batches. No batch spans two parts."""

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
    tile: int | None = None
    approximate_tiles: bool = False

    def __post_init__(self) -> None:
        self.native = bool(getattr(self.split, "native", False))
        self.device = next(self.tokenizer.parameters()).device
        self.reader = Reader(self.split, self.views)
        # Files that were found unreadable while the data set was built.
        self.unreadable = dict(self.split.problems)
        self.size = self._first()
        if self.native:  # Any image may be larger than a tile.
            self.approximated = (
                self.approximate_tiles and reach(self.tokenizer, "encode").pixels is None
            )
        else:
            self.approximated = check_tiles(
                self.tokenizer, "encode", self.size, self.tile, self.approximate_tiles
            )
        if self.native or not is_whole(self.size, self.tile):
            self.batch_size = 1
        self.pixels = self._hash()
        self.rows = len(self.split) * self.views

    def _first(self) -> tuple[int, int]:
        """Height and width of the images; `OptionError` if all views of an image are equal.

        Sets `placed`: whether the data set says which part of an original an image shows.
        """
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
            self.placed = facts.views[0][1] is not None
            return pixels.shape[1], pixels.shape[2]
        raise none_readable({**self.split.problems, **problems}, "images")

    def _hash(self) -> str:
        """A hash of the pixels of a few images, which depends on the data set's options."""
        count = len(self.split)
        digest = hashlib.sha256()
        for image in range(0, count, max(1, count // _HASHED)):
            pixels, _ = self.reader.read(range(image * self.views, (image + 1) * self.views))
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    def table(self) -> dict[str, Any]:
        """The facts that hold for all rows, as token files have them."""
        return {
            **made_by(self.tokenizer),
            "source": self.split.fingerprint,
            "resolution": NATIVE if self.native else list(self.size),
            "views": self.views,
            "precision": precision_text(self.tokenizer, self.device, self.mixed_precision),
            **(
                {"tiles": f"approximate, of {self.tile or TILE} pixels"}
                if self.approximated
                else {}
            ),
        }

    def encode(
        self, parts: Sequence[range], progress: Callable[[int], object] = lambda count: None
    ) -> Iterator[tuple[Rows, dict[str, str]]]:
        """The rows of each part that could be read, with the files that could not."""
        if not parts:
            return
        workers = workers_of(self.workers, launched()[1])
        size = (1, 1) if self.native else self.size
        shape = self.batch_size, *size, self.split.channels
        batches = stream(
            self.reader.read,
            _Batches(parts, self.batch_size),
            shape,
            workers,
            is_deep(self.split),
        )
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
        """The rows of each batch, in order. Several batches are encoded at a time."""
        threads = torch.get_num_threads()
        own = self.device.type != "cpu"
        lanes = _LANES if own else min(_LANES, threads)
        waiting: deque[Future[tuple[Rows, dict[str, str]]]] = deque()
        pool = ThreadPoolExecutor(
            lanes,
            initializer=torch.set_num_threads,
            initargs=(threads if own else threads // lanes,),
        )
        try:
            with self.tokenizer.evaluating(), float32_by_default():
                for pixels, facts in batches:
                    waiting.append(pool.submit(self._rows, pixels, facts))
                    if len(waiting) > lanes:  # One more than are encoded, so that no lane is idle.
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # Threads of one process share some of the setting.

    def _rows(self, pixels: Tensor, facts: _Facts) -> tuple[Rows, dict[str, str]]:
        """The rows of one batch."""
        views = [(number, view or _UNKNOWN) for number, view in facts.views]
        crops = [(number, *view.crop, view.mirrored) for number, view in views]
        levels: Sequence[Tensor | Ragged] = self._indices(pixels)
        if self.native:
            levels = [as_ragged(level) for level in levels if isinstance(level, Tensor)]
        return Rows(
            levels,
            facts.names,
            torch.tensor([-1 if label is None else label for label in facts.labels]).long(),
            [text or "" for text in facts.captions] if any(facts.captions) else None,
            _table([view.size for _, view in views], 2) if self.placed else None,
            _table(crops, 6) if self.placed or self.views > 1 else None,
        ), facts.problems

    def _indices(self, pixels: Tensor) -> list[Tensor]:
        """The indices of a batch of images, int32 on the CPU."""
        if not len(pixels):
            count = [number for number, _ in self.tokenizer.codebooks]
            shapes = [
                (0, *level.grid(*self.size), *([each] if each > 1 else []))
                for level, each in zip(self.tokenizer.levels, count, strict=True)
            ]
            return [torch.empty(shape, dtype=torch.int32) for shape in shapes]
        with mixed(self.device, self.mixed_precision):
            if self.native:
                pixels = torch.from_numpy(pad_pixels(self.tokenizer, pixels.numpy()))
            if is_whole((pixels.shape[1], pixels.shape[2]), self.tile):
                images = from_pixels(pixels.to(self.device, non_blocking=True))
                indices = self.tokenizer.encode(images)
            else:
                indices = encode_tiles(
                    self.tokenizer, pixels, self.tile, approximate=self.approximate_tiles
                )
        return [level.to("cpu", torch.int32) for level in indices]


def _table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, columns)
