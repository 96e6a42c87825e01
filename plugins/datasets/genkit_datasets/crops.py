"""Crops of encoded images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar

import numpy as np
import torch

from genkit.data.cache import ImageCache
from genkit.errors import OptionError, UnreadableImage
from genkit.files import printable
from genkit.images import Pixels
from genkit_datasets import FileOptions
from genkit_datasets.decoding import Size, resized, resized_fast

File = TypeVar("File")


class Crops(ABC, Generic[File]):
    """A data set of images in files; what derives from it says how one is named and opened.

    Training images are cropped at random, others at fixed places. Decoded images are kept whole,
    so that crops and flips are what they are without.
    """

    files: list[File]

    def __init__(self, options: FileOptions, split: str, resolution: int) -> None:
        self.look, self.resolution = options, resolution
        self.crops = 1 if split == "train" else options.crops
        self.problems: dict[str, str] = {}
        self._short = max(resolution, options.short_side)

    def take(self, files: list[File]) -> None:
        """Make these the images. To be called when the data set is built.

        Processes that read it are forked later and share what is kept.
        """
        self.files = files
        try:
            # Of each file the plain image and the one to train on.
            self._kept = ImageCache(2 * len(files), self.look.cache * 2**20)
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"this machine has no {self.look.cache} megabytes for decoded images ({error}): "
                "give a lower --data.cache"
            ) from error

    @abstractmethod
    def file_name(self, file: File) -> str:
        """What to call a file."""

    @abstractmethod
    def encoded(self, file: File) -> Path | IO[bytes]:
        """Where to read a file from; any exception says why it cannot be read."""

    def __len__(self) -> int:
        return len(self.files) * self.crops

    def name(self, index: int) -> str:
        """The file's name, and which of its crops it is if there are several."""
        number, crop = divmod(index, self.crops)
        return self.file_name(self.files[number]) + (f"#{crop}" if self.crops > 1 else "")

    def images(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """Crops uint8 `[B, resolution, resolution, 3]`.

        Each seed places its crop and may mirror it.
        """
        result = np.empty((len(indices), self.resolution, self.resolution, 3), dtype=np.uint8)
        # In a row, as one between two images takes four times as long.
        rngs: Sequence[np.random.Generator | None] = (
            [None] * len(indices)
            if seeds is None
            else [np.random.default_rng(int(seed)) for seed in seeds]
        )
        for row, (index, rng) in enumerate(zip(indices, rngs, strict=True)):
            try:
                image = self._decoded(index // self.crops, seeds is not None)
            except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
                reason = printable(f"{type(error).__name__}: {error}")
                raise UnreadableImage(self.name(index), reason) from error
            result[row] = self._crop(image, index % self.crops, rng)
            if rng is not None and self.look.flip and rng.random() < 0.5:
                # Six times as fast as NumPy's.
                result[row] = torch.from_numpy(result[row]).flip(1).numpy()
        return result

    @property
    def notes(self) -> list[str]:
        """What to tell before training."""
        least = len(self.files) * 3 * self._short**2 / 2**20
        if not 0 < self.look.cache < least:
            return []
        return [
            f"Less than {self.look.cache / least:.0%} of the decoded images fit into --data.cache "
            f"{self.look.cache}, which would have to be {least * 1.5:.0f} or so; the others are "
            "decoded anew each time"
        ]

    def _decoded(self, number: int, varied: bool) -> Pixels:
        """A file's image `[H, W, 3]`, resized; kept in memory while there is room."""
        place = 2 * number + varied
        if (image := self._kept.get(place)) is None:
            decode = resized_fast if varied else resized
            image = decode(
                self.encoded(self.files[number]),
                self._target,
                self.look.background,
                self.look.max_pixels,
            )
            self._kept.put(place, image)
        return image

    def _target(self, width: int, height: int) -> Size:
        scale = self._short / min(width, height)
        return max(self.resolution, round(width * scale)), max(
            self.resolution, round(height * scale)
        )

    def _crop(self, image: Pixels, number: int, rng: np.random.Generator | None) -> Pixels:
        size, (height, width) = self.resolution, image.shape[:2]
        # Steps by powers of the plastic number spread any number of points evenly over a square.
        left, top = (
            int((0.5 + number * step) % 1 * (side - size + 1))
            for step, side in ((0.7549, width), (0.5698, height))
        )
        if rng is not None:
            left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
        return image[top : top + size, left : left + size]
