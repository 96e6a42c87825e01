"""Images of files, memory and arrays, as a tokenizer takes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genkit.data import MAX_PIXELS
from genkit.data.arrays import Raw, raw_array, raw_image, read_raw
from genkit.data.decoding import covering, middle, resized_pixels
from genkit.data.fitting import Reading, fitted
from genkit.errors import DataError, OptionError
from genkit.images import Pixels, from_pixels
from genkit.interfaces import Values
from genkit.size import Resolution, Size, parsed_size

if TYPE_CHECKING:
    from genkit.tokenizer import Tokenizer

# A path, the bytes of a file, a PIL image, or an array [H, W] or [H, W, C].
Source = Any


def open_images(
    sources: Source | Sequence[Source],
    tokenizer: Tokenizer | None = None,
    *,
    size: Resolution | None = None,
    channels: int | None = None,
    range: tuple[float, float] | None = None,
    background: Sequence[int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Images `[B, C, H, W]` in [-1, 1], which `tokenizer.encode` takes.

    A source is a path, the bytes of a file, a PIL image, or an array `[H, W]` or `[H, W, C]`. With
    a `size` (a number, or height and width) images are resized to cover it and cropped in the
    middle; without one they need to be of one size. By default `channels` is 1 for grey images, 3
    for others, and the number of an array's channels. Transparency is put over `background`,
    unless `channels` is 2 or 4. `range` holds the values of black and white, by default 0 and 255,
    65535 for 16 bits, or 1 for floats. A `tokenizer` gives its own `channels`, `range` and
    training size where they are not given.

    `DataError` for an unreadable source, `OptionError` for images that do not fit each other.
    """
    ends, wanted = range, None if size is None else parsed_size(size)
    if tokenizer is not None:
        channels = channels or tokenizer.channels
        if ends is None and tokenizer.values != Values():
            ends = tokenizer.values.range
        wanted = wanted or Size.of(tokenizer.facts.get("resolution"))
    images = []
    for number, source in enumerate(_listed(sources)):
        name = f"'{source}'" if isinstance(source, str | os.PathLike) else f"image {number}"
        try:
            raw = _raw(source, max_pixels)
            deep = ends is not None or raw.array.dtype != np.uint8
            own = raw.array.shape[2] - raw.alpha
            how = Reading(channels or own, deep, ends, (), tuple(background), max_pixels)
            pixels = fitted(raw, how)
            pixels = pixels if wanted is None else _cropped(pixels, wanted.pair)
            images.append(from_pixels(np.array(pixels)[None]))
        except FileNotFoundError:
            raise DataError(f"{name} does not exist") from None
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
            raise DataError(f"{name} cannot be read: {error}") from error
    if not images:
        raise OptionError("there are no images to open")
    shapes = list(dict.fromkeys(tuple(image.shape[1:]) for image in images))
    if len(shapes) > 1:
        texts = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise OptionError(f"the images differ, [C, H, W] is {texts}: give size and channels")
    return torch.cat(images)


def _listed(sources: Any) -> list[Source]:
    """The single sources, of a list or of an array `[B, H, W, C]`."""
    if isinstance(sources, Tensor):
        sources = sources.cpu().numpy()
    if isinstance(sources, np.ndarray):
        return list(sources) if sources.ndim == 4 else [sources]
    if isinstance(sources, str | os.PathLike | bytes | Image.Image):
        return [sources]
    return list(sources)


def _raw(source: Source, most: int) -> Raw:
    """An upright image in its own values."""
    if isinstance(source, Tensor):
        source = source.cpu().numpy()
    if isinstance(source, np.ndarray):
        return raw_array(source)
    if isinstance(source, Image.Image):
        return raw_image(source.copy())
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(f"{type(source).__name__} is not a path, bytes, a PIL image or an array")
    file = BytesIO(source) if isinstance(source, bytes) else Path(source).expanduser()
    if isinstance(file, Path) and file.is_dir():
        raise ValueError("it is a folder: give the files in it")
    return read_raw(file, most)


def _cropped(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The middle of an image that is resized to cover a size, as data sets of files do it."""
    left, top, right, bottom = middle(pixels.shape[1], pixels.shape[0])
    pixels = pixels[top:bottom, left:right]
    rows, columns = size
    pixels = resized_pixels(pixels, covering(pixels.shape[1], pixels.shape[0], size))
    top, left = (pixels.shape[0] - rows + 1) // 2, (pixels.shape[1] - columns + 1) // 2
    return pixels[top : top + rows, left : left + columns]
