"""Crops of encoded images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
import torch

from genkit.data.arrays import About, about, upright_size, widest
from genkit.data.cache import ImageCache
from genkit.data.decoding import Size, covering, middle, resized, resized_fast, whole
from genkit.data.fitting import Reading
from genkit.data.split import Subset
from genkit.errors import OptionError, UnreadableImage, reason_of
from genkit.files import printable
from genkit.images import Pixels
from genkit.interfaces import Values, View
from genkit_datasets import FileOptions
from genkit_datasets.labels import numbered
from genkit_datasets.split import held_out

File = TypeVar("File")
# So many headers decide on the channels and the type of a data set.
_LOOKED_AT = 64


class Crops(ABC, Generic[File]):
    """A data set of encoded images. Subclasses name and open the files.

    Training images are cropped at random, others at fixed positions: crop c of file n is image
    n * crops + c. The cache holds whole decoded images, so it does not change crops and flips.
    """

    channels: int
    values: Values
    fingerprint: str
    files: list[File]

    # Built without a size, it returns every image in its own.
    any_size = True

    def __init__(self, options: FileOptions, size: tuple[int, int] | None) -> None:
        self.look, self.native = options, size is None
        # Without a size it is not used.
        self.size = size or (1, 1)
        self._crops = 1 if self.native else options.crops
        self.problems: dict[str, str] = {}
        self.classes: list[str] = []
        self._apart: int | None = None
        self._labels: list[int | None] = []
        # The original whose size was asked for last, and its size.
        self._sized: tuple[int, Size] = (-1, (0, 0))
        # Facts of a few files' headers.
        self._headers: list[About] = []

    def take(self, files: list[File], apart: list[File] | None = None) -> None:
        """Set the images. Files `apart`, if given, are held out instead of a share of `files`.

        Call this while building the data set: reader processes are forked later and share the
        cache.
        """
        self.files = files + (apart or [])
        self._apart = None if apart is None else len(apart)
        self._reading = self._found()
        try:
            # Two entries per file: the exactly resized image and the one resized for training.
            self._kept = ImageCache(
                2 * len(self.files), self.look.cache * 2**20, self._reading.deep
            )
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"the cache of decoded images needs {self.look.cache} megabytes, which cannot be "
                f"allocated ({error}): give a lower --data.cache"
            ) from error

    def _found(self) -> Reading:
        """How the files are read, from the options and the headers of a few files."""
        look = self.look
        for file in self.files[:: max(1, len(self.files) // _LOOKED_AT)]:
            # An unreadable file is reported when its turn comes.
            with suppress(Exception):
                self._headers.append(about(self.encoded(file), look.max_pixels))
        span, bands = look.chosen_range, look.chosen_bands
        types = widest([each.values for each in self._headers] or [Values()])
        self.values = Values(types.type, span or types.range)
        has = {each.channels for each in self._headers} or {3}
        self.channels = look.channels or len(bands) or (3 if has == {1, 3} else max(has))
        return Reading(
            self.channels,
            self.values != Values(),
            span,
            bands,
            look.background,
            look.max_pixels,
            converts=bool(look.channels or bands) or self.channels == 3,
        )

    def take_labels(self, values: Sequence[Any], classes: Sequence[str] = ()) -> None:
        """Set the labels, one per file in order; None means unlabelled.

        With `classes`, values are indices into it, and any other value means unlabelled.
        """
        if classes:
            valid = range(len(classes))
            self.classes = list(classes)
            self._labels = [value if value in valid else None for value in values]
        else:
            self.classes, self._labels = numbered(values)

    @abstractmethod
    def file_name(self, file: File) -> str:
        """The display name of a file."""

    @abstractmethod
    def encoded(self, file: File) -> Path | IO[bytes]:
        """The path or stream of a file's bytes. Any exception is reported as the reason."""

    def key(self, file: File) -> str:
        """The key that decides whether a file is held out: files with equal keys stay together."""
        return self.file_name(file)

    def split(self, name: str) -> Subset:
        """The images of `train`, or the crops of `heldout` or of `all` files."""
        count, every = len(self.files) - (self._apart or 0), range(len(self.files))
        if name == "all":
            chosen: Sequence[int] = every[:count]
        elif self._apart is not None:
            chosen = every[count:] if name == "heldout" else every[:count]
        else:
            held = held_out([self.key(file) for file in self.files], self.look)
            chosen = [number for number in every if held[number] == (name == "heldout")]
        crops = self._crops
        if name == "train":
            return _Whole(self, [number * crops for number in chosen])
        return Subset(self, [number * crops + crop for number in chosen for crop in range(crops)])

    def caption_of(self, file: File) -> str | None:
        """The caption of a file's image, if any."""
        return None

    def label(self, number: int) -> int | None:
        """The number of the image's class."""
        return self._labels[number // self._crops] if self._labels else None

    def caption(self, number: int) -> str | None:
        """The caption of the whole image that this is a crop of."""
        return self.caption_of(self.file_of(number))

    def file_of(self, number: int) -> File:
        """The file that an image is cropped from."""
        return self.files[number // self._crops]

    def name(self, number: int) -> str:
        """The file's name, with the crop's number if there are several crops per file."""
        crop = f"#{number % self._crops}" if self._crops > 1 else ""
        return self.file_name(self.file_of(number)) + crop

    def images(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """Crops `[B, H, W, channels]`, uint8 or uint16; or one image in its own size.

        Each seed decides the position of its crop and whether it is flipped.
        """
        if self.native:
            (number,) = numbers
            with self._reported(self.name(number)):
                # A copy, since PyTorch warns of memory that it must not write to.
                return np.array(whole(self.encoded(self.file_of(number)), self._reading))[None]
        shape = len(numbers), *self.size, self.channels
        result: Pixels = np.empty(shape, np.uint16 if self._reading.deep else np.uint8)
        # Create all generators first: interleaving this with decoding is 4x slower.
        rngs: Sequence[np.random.Generator | None] = (
            [None] * len(numbers)
            if seeds is None
            else [np.random.default_rng(int(seed)) for seed in seeds]
        )
        before, image = -1, result[:0]
        for row, (number, rng) in enumerate(zip(numbers, rngs, strict=True)):
            place, crop = divmod(number, self._crops)
            if place != before:  # Views of one image follow each other.
                name = self.name(number) if rng is None else self.file_name(self.files[place])
                with self._reported(name):
                    before, image = place, self._decoded(place, seeds is not None)
            result[row] = self._crop(image, crop, rng)
            if rng is not None and self._is_mirrored(rng):
                # PyTorch flips six times as fast as NumPy, in old versions no uint16.
                signed = result[row].view(f"i{result.itemsize}")
                signed[:] = torch.from_numpy(signed).flip(1).numpy()
        return result

    @property
    def notes(self) -> list[str]:
        """Sentences to print before training."""
        if self.native:
            return []
        trained_on = len(self.split("train"))
        pixels = math.prod(max(side, self.look.short_side) for side in self.size)
        size = self.channels * (1 + self._reading.deep)
        least = trained_on * size * pixels / 2**20
        if not 0 < self.look.cache < least:
            return []
        return [
            f"Less than {self.look.cache / least:.0%} of the decoded images fit into --data.cache "
            f"{self.look.cache}; the others are decoded each time; about {least * 1.5:.0f} "
            "megabytes would hold all of them"
        ]

    @property
    def cropping(self) -> str:
        """A sentence on what the middle crop leaves out of these images; empty if nothing."""
        height, width = self.size
        kept = {
            each.size: width * height / math.prod(self._target(*each.size))
            for each in self._headers
        }
        if self.native or not kept or (share := min(kept.values())) > 0.99:
            return ""
        columns, rows = min(kept, key=kept.__getitem__)
        return (
            f"The middle crop to {height} x {width} pixels leaves out up to {1 - share:.0%} of an "
            f"image, as of one {rows} high and {columns} wide; --resolution native keeps all."
        )

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Raise `UnreadableImage` with this name for any error inside."""
        try:
            yield
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
            raise UnreadableImage(name, printable(reason_of(error))) from error

    def _decoded(self, number: int, varied: bool) -> Pixels:
        """A file's image `[H, W, C]`, resized, cached while there is room."""
        place = 2 * number + varied
        if (image := self._kept.get(place)) is None:
            decode = resized_fast if varied else resized
            image = decode(self.encoded(self.files[number]), self._target, self._reading)
            self._kept.put(place, image)
        return image

    def _target(self, width: int, height: int) -> Size:
        return covering(width, height, self.size, self.look.short_side)

    def view(self, number: int, seed: int | None = None) -> View:
        """The part of the original that an image shows."""
        place, crop = divmod(number, self._crops)
        width, height = self._size_of(place)
        x, y, right, bottom = middle(width, height)
        columns, rows = self._target(right - x, bottom - y)
        rng = None if seed is None else np.random.default_rng(int(seed))
        top, left = self._place(rows, columns, crop, rng)
        first, tall = _span(top, self.size[0], rows, bottom - y)
        side, wide = _span(left, self.size[1], columns, right - x)
        mirrored = rng is not None and self._is_mirrored(rng)
        return View((height, width), (y + first, x + side, tall, wide), mirrored)

    def _size_of(self, place: int) -> Size:
        """Width and height of an original."""
        if self._sized[0] != place:  # The views of an image follow each other.
            file = self.files[place]
            with self._reported(self.file_name(file)):
                self._sized = place, upright_size(self.encoded(file), self.look.max_pixels)
        return self._sized[1]

    def _is_mirrored(self, rng: np.random.Generator) -> bool:
        return self.look.flip and bool(rng.random() < 0.5)

    def _crop(self, image: Pixels, number: int, rng: np.random.Generator | None) -> Pixels:
        top, left = self._place(image.shape[0], image.shape[1], number, rng)
        return image[top : top + self.size[0], left : left + self.size[1]]

    def _place(
        self, height: int, width: int, number: int, rng: np.random.Generator | None
    ) -> tuple[int, int]:
        """Top and left of a crop in a resized image."""
        rows, columns = self.size
        # The R2 sequence: multiples of powers of the plastic number cover a square evenly.
        left, top = (
            int((0.5 + number * step) % 1 * (whole - part + 1))
            for step, whole, part in ((0.7549, width, columns), (0.5698, height, rows))
        )
        if rng is not None:
            left = int(rng.integers(width - columns + 1))
            top = int(rng.integers(height - rows + 1))
        return top, left


def _span(start: int, length: int, resized: int, whole: int) -> tuple[int, int]:
    """Start and length, in the original, of a part of its resized side."""
    first, after = (round(place * whole / resized) for place in (start, start + length))
    return min(first, whole - 1), max(1, after - first)


class _Whole(Subset):
    """Training images. Their crops are random, so each has its file's name without a number."""

    dataset: Crops[Any]

    def name(self, index: int) -> str:
        """The file's name."""
        return self.dataset.file_name(self.dataset.file_of(self.numbers[index]))
