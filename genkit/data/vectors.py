"""Vectors of images that a prior is conditioned on, from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genkit.checkpoint.header import read_header
from genkit.errors import DataError
from genkit.files import expanded, is_file


class Vectors:
    """Vectors `[T, C]` of images by name, in a safetensors file that is read when asked for.

    `length` is the largest T, `channels` is C. `DataError` if the file holds anything else.
    """

    def __init__(self, path: str) -> None:
        self.path = expanded(path)
        if not is_file(self.path):
            raise DataError(f"there is no file '{path}': name a safetensors file of vectors")
        _, entries = read_header(self.path)
        shapes = {name: entry["shape"] for name, entry in entries.items()}
        wrong = [
            name
            for name, shape in shapes.items()
            if len(shape) != 2 or not all(shape) or entries[name]["dtype"] not in _FLOATS
        ]
        if wrong or not shapes:
            what = f"'{wrong[0]}' is {shapes[wrong[0]]}" if wrong else "it is empty"
            raise DataError(f"'{path}' must hold floats [T, C] for each image, but {what}")
        self.names = list(shapes)
        self.length = max(shape[0] for shape in shapes.values())
        channels = {shape[1] for shape in shapes.values()}
        if len(channels) > 1:
            raise DataError(f"the vectors in '{path}' have different sizes: {sorted(channels)}")
        (self.channels,) = channels
        self.known = set(self.names)

    def check(self, names: Sequence[str]) -> None:
        """`DataError` if an image has no vectors."""
        missing = [name for name in names if name not in self.known]
        if missing:
            raise DataError(
                f"'{self.path}' has no vectors for {len(missing)} of {len(names)} images, first "
                f"'{missing[0]}'"
            )

    def in_turn(self, images: Iterable[int]) -> Tensor:
        """The vectors of images by number, where the file's entries follow each other in turn."""
        return self.of([self.names[image % len(self.names)] for image in images])

    def of(self, names: Sequence[str]) -> Tensor:
        """The vectors float32 `[B, T, C]` of images, padded with zeros to the largest T."""
        result = torch.zeros(len(names), self.length, self.channels)
        try:
            with safe_open(Path(self.path), "pt") as file:
                for row, name in enumerate(names):
                    vectors = file.get_tensor(name)
                    result[row, : len(vectors)] = vectors.float()
        except (SafetensorError, OSError) as error:
            raise DataError(f"'{self.path}' cannot be read: {error}") from error
        return result


_FLOATS = ("F16", "BF16", "F32", "F64")
