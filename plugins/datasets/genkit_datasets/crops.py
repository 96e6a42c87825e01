"""Crops of encoded images, whatever their format, size, orientation or colour mode."""

from __future__ import annotations

import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps

from genkit.errors import UnreadableImage
from genkit_datasets import FileOptions

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
File = TypeVar("File")

# The longest side taken of an image, as a multiple of its shorter one.
_LONGEST = 16


class Crops(ABC, Generic[File]):
    """A data set of the images in `files`; what derives from it says how one is named and opened.

    Training images are cropped at random, others at fixed places.
    """

    files: list[File]

    def __init__(self, options: FileOptions, split: str, resolution: int) -> None:
        self.look, self.resolution = options, resolution
        self.crops = 1 if split == "train" else options.crops
        self.problems: dict[str, str] = {}
        self._cache: dict[int, Pixels] = {}
        self._room = options.cache * 2**20

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
        for row, index in enumerate(indices):
            try:
                image = self._decoded(index // self.crops)
            except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
                reason = f"{type(error).__name__}: {error}"
                raise UnreadableImage(self.name(index), reason) from error
            rng = None if seeds is None else np.random.default_rng(int(seeds[row]))
            result[row] = self._crop(image, index % self.crops, rng)
        return result

    def _decoded(self, number: int) -> Pixels:
        """A file's image `[H, W, 3]`, resized; kept in memory while there is room."""
        if (kept := self._cache.get(number)) is not None:
            return kept
        image = read_rgb(self.encoded(self.files[number]), self.look.background)
        long, short = max(image.size), min(image.size)
        if long > _LONGEST * short:
            # No crop of a strip needs all of it, and enlarged it would not fit in memory.
            spare = (long - _LONGEST * short) // 2
            box = (
                (spare, 0, long - spare, short)
                if image.width == long
                else (0, spare, short, long - spare)
            )
            image = image.crop(box)
        scale = max(self.resolution, self.look.short_side) / min(image.size)
        width, height = (max(self.resolution, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
        if self._room >= pixels.nbytes:
            self._cache[number] = pixels
            self._room -= pixels.nbytes
        return pixels

    def _crop(self, image: Pixels, number: int, rng: np.random.Generator | None) -> Pixels:
        size, (height, width) = self.resolution, image.shape[:2]
        # Steps by powers of the plastic number spread any number of points evenly over a square.
        left, top = (
            int((0.5 + number * step) % 1 * (side - size + 1))
            for step, side in ((0.7549, width), (0.5698, height))
        )
        if rng is not None:
            left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
        crop = image[top : top + size, left : left + size]
        mirrored = rng is not None and self.look.flip and rng.random() < 0.5
        return crop[:, ::-1] if mirrored else crop


def read_rgb(source: Path | IO[bytes], background: Sequence[int] = (255, 255, 255)) -> Image.Image:
    """The first frame of an image file, upright, as RGB; transparent pixels lie on `background`."""
    with warnings.catch_warnings(), opened(source) as file:
        warnings.simplefilter("ignore")  # What is odd about a file that can be read.
        if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            # Pillow only warns of images that take gigabytes once decoded.
            raise ValueError(f"{file.width} x {file.height} pixels are too many")
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):
            # Pillow clips 16 bits to 8 where they should be scaled.
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("32 bits a pixel have no stated range")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(
                Image.new("RGBA", image.size, (*background, 255)), image
            ).convert("RGB")
        return image.convert("RGB")


def opened(source: Path | IO[bytes]) -> Image.Image:
    """An image file with its header read.

    A pipe or a device, which may never end, is none; nor is a program in PostScript, for which
    Pillow runs another program.
    """
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise ValueError("it is no file")
    Image.init()
    return Image.open(source, formats=[kind for kind in Image.ID if kind != "EPS"])


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere."""
    return name.encode("utf-8", "backslashreplace").decode()
