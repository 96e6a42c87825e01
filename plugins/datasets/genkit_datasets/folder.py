"""Image files of a folder, whatever their format, size, orientation or colour mode."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from genkit.errors import DataError, UnreadableImage
from genkit_datasets import FolderOptions

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# The longest side taken of an image, as a multiple of its shorter one.
_LONGEST = 16


class Folder:
    """The readable images below a folder, split by file.

    Training images are cropped at random, others at fixed places. Files whose header cannot be read
    are left out and named in `problems`.
    """

    def __init__(self, options: FolderOptions, split: str, resolution: int, seed: int) -> None:
        self.options = options
        self.resolution = resolution
        if not options.location:
            raise DataError("the folder of images is not known: name it with --data")
        apart = split == "heldout" and options.heldout_folder
        location = options.heldout_folder if apart else options.location
        self.root = Path(location)
        if not self.root.exists():
            raise DataError(f"there is no folder '{location}' to read images from")
        self.problems: dict[str, str] = {}
        names = sorted(_image_names(self.root))
        if not self.root.is_dir():
            self.root, names = self.root.parent, [self.root.name]
        readable = [name for name in names if self._readable(name)]
        if not readable:
            first = next(iter(self.problems.items()), None)
            detail = (
                f"{len(self.problems)} cannot be read, first {first[0]}: {first[1]}"
                if first
                else "it holds none"
            )
            raise DataError(f"no image can be read in '{location}': {detail}")
        # Names alone do not tell one numbered folder from another; sizes nearly always do.
        listed = "\n".join(f"{_printable(n)}:{(self.root / n).stat().st_size}" for n in readable)
        # Without the folder held out, nobody shall take a share of what was trained on for it.
        kind = "folder-whole:" if options.heldout_folder else "folder:"
        self.fingerprint = kind + hashlib.sha256(listed.encode()).hexdigest()
        self.names = self._split(readable, split)
        self._cache: dict[int, Pixels] = {}
        self._room = options.cache * 2**20
        self.crops = 1 if split == "train" else options.crops

    def __len__(self) -> int:
        return len(self.names) * self.crops

    def name(self, index: int) -> str:
        """The file's path below the folder, and which of its crops it is if there are several."""
        file, crop = divmod(index, self.crops)
        return _printable(self.names[file]) + (f"#{crop}" if self.crops > 1 else "")

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
        image = read_rgb(self.root / self.names[number], self.options.background)
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
        scale = max(self.resolution, self.options.short_side) / min(image.size)
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
        mirrored = rng is not None and self.options.flip and rng.random() < 0.5
        return crop[:, ::-1] if mirrored else crop

    def _readable(self, name: str) -> bool:
        try:
            with warnings.catch_warnings():
                # Pillow only warns of images that take gigabytes once decoded.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(self.root / name):
                    return True
        except Exception as error:  # As above.
            self.problems[_printable(name)] = f"{type(error).__name__}: {error}"
            return False

    def _split(self, names: list[str], split: str) -> list[str]:
        if split == "all" or self.options.heldout_folder:
            return names
        if len(names) == 1:
            raise DataError(
                f"'{self.options.location}' holds one readable image; "
                "two are needed to hold one out of training"
            )
        ranks = {name: _share(f"{self.options.split_seed}:{_printable(name)}") for name in names}
        ordered = sorted(names, key=ranks.__getitem__)
        below = sum(rank < self.options.heldout for rank in ranks.values())
        heldout = set(ordered[: min(max(1, below), len(names) - 1)])
        return [name for name in names if (name in heldout) == (split == "heldout")]


def read_rgb(path: Path, background: Sequence[int] = (255, 255, 255)) -> Image.Image:
    """The first frame of an image file, upright, as RGB; transparent pixels lie on `background`."""
    with Image.open(path) as file:
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


def _image_names(root: Path) -> list[str]:
    Image.init()
    known = set(Image.registered_extensions())
    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # A link may lead back to where it stands.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in names
            if os.path.splitext(name)[1].lower() in known
        ]
    return found


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
