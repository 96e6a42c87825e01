"""Images of files, memory and arrays, as a tokenizer takes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genkit.data import MAX_PIXELS
from genkit.data.decoding import middle
from genkit.data.opening import from_opened, to_rgb
from genkit.errors import DataError, OptionError
from genkit.images import from_pixels, from_values
from genkit.interfaces import Values

if TYPE_CHECKING:
    from genkit.tokenizer import Tokenizer

# A path, the bytes of a file, a PIL image, or an array [H, W] or [H, W, C].
Source = Any
Array = np.ndarray[Any, Any]
Size = tuple[int, int]
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# The values of black and white in arrays that do not say them.
_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


def open_images(
    sources: Source | Sequence[Source],
    tokenizer: Tokenizer | None = None,
    *,
    size: int | Size | None = None,
    channels: int | None = None,
    range: tuple[float, float] | None = None,
    background: Sequence[int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Images `[B, C, H, W]` in [-1, 1], which `tokenizer.encode` takes.

    A source is a path, the bytes of a file, a PIL image, or an array `[H, W]` or `[H, W, C]`. With
    a `size` (a number, or height and width) images are resized to cover it and cropped in the
    middle; without one they need to be of one size. `channels` are by default those of the images:
    1 for grey ones, otherwise 3, or those of an array. Transparency is put over `background`,
    unless `channels` is 2 or 4. `range` holds the values of black and white, by default 0 and 255,
    65535 for 16 bits, or 1 for floats. A `tokenizer` gives its own `channels`, `range` and
    training size where they are not given.

    `DataError` for what cannot be read, `OptionError` for images that do not fit each other.
    """
    ends = range
    if tokenizer is not None:
        channels = channels or tokenizer.channels
        if ends is None and tokenizer.values != Values():
            ends = tokenizer.values.range
        size = size or tokenizer.facts.get("resolution")
    wanted = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
    images = []
    for number, source in enumerate(_listed(sources)):
        name = f"'{source}'" if isinstance(source, str | os.PathLike) else f"image {number}"
        try:
            array = _fitted(_read(source, channels, background, max_pixels), channels)
            array = array if wanted is None else _cropped(array, wanted)
            images.append(_scaled(array, ends))
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
    """The single sources: those of a list, or the images of an array `[B, H, W, C]`."""
    if isinstance(sources, Tensor):
        sources = sources.cpu().numpy()
    if isinstance(sources, np.ndarray):
        return list(sources) if sources.ndim == 4 else [sources]
    if isinstance(sources, str | os.PathLike | bytes | Image.Image):
        return [sources]
    return list(sources)


def _read(
    source: Source, channels: int | None, background: Sequence[int], max_pixels: int
) -> Array:
    """An upright image `[H, W, C]` in its own values."""
    if isinstance(source, Tensor):
        source = source.cpu().numpy()
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".npy":
        source = np.load(source, allow_pickle=False)
    if isinstance(source, np.ndarray):
        array = source if source.ndim == 3 else source[..., None]
        if array.ndim != 3 or not 1 <= array.shape[2] <= 16:
            shape = list(source.shape)
            raise ValueError(f"an array must be [H, W] or [H, W, C] with C up to 16, not {shape}")
        return array
    if isinstance(source, Image.Image):
        return _pixels(source.copy(), channels, background)
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(f"{type(source).__name__} is not a path, bytes, a PIL image or an array")
    file = BytesIO(source) if isinstance(source, bytes) else Path(source).expanduser()
    if isinstance(file, Path) and file.is_dir():
        raise ValueError("it is a folder: give the files in it")
    return from_opened(file, lambda image: _pixels(image, channels, background), max_pixels)


def _pixels(image: Image.Image, channels: int | None, background: Sequence[int]) -> Array:
    """The values of an opened image: of 16 bits as they are, else of the channels asked for."""
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(ImageOps.exif_transpose(image))[..., None]
    if channels in (2, 4):
        clear = ImageOps.exif_transpose(image).convert("RGBA")
        return np.asarray(clear.convert(_MODES[channels]))
    grey = image.mode in ("1", "L", "LA", "La")
    rgb = to_rgb(image, background)
    return np.asarray(rgb.convert("L"))[..., None] if grey or channels == 1 else np.asarray(rgb)


def _fitted(array: Array, channels: int | None) -> Array:
    """The image with the channels asked for: grey becomes RGB, and RGB grey."""
    own = array.shape[2]
    if channels in (None, own):
        return array
    if (own, channels) == (1, 3):
        return array.repeat(3, 2)
    if (own, channels) == (3, 1):
        grey = array.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        whole = array.dtype.kind in "iu"
        return (grey.round() if whole else grey).astype(array.dtype)[..., None]
    raise ValueError(f"it has {own} channels, not {channels}")


def _cropped(array: Array, size: Size) -> Array:
    """The middle of an image that is resized to cover a size, as data sets of files do it."""
    left, top, right, bottom = middle(array.shape[1], array.shape[0])
    array = array[top:bottom, left:right]
    (height, width), (rows, columns) = array.shape[:2], size
    scale = max(columns / width, rows / height)
    to = max(columns, round(width * scale)), max(rows, round(height * scale))
    if to != (width, height):
        array = _resized(array, to)
    top, left = (array.shape[0] - rows + 1) // 2, (array.shape[1] - columns + 1) // 2
    return array[top : top + rows, left : left + columns]


def _resized(array: Array, to: Size) -> Array:
    """An image resized with a Lanczos kernel to a width and height."""
    kernel = Image.Resampling.LANCZOS
    if array.dtype == np.uint8 and array.shape[2] in _MODES:
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        pixels = np.asarray(image.resize(to, kernel))
        return pixels if pixels.ndim == 3 else pixels[..., None]
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(band, np.float32)).resize(to, kernel))
        for band in np.moveaxis(array, 2, 0)
    ]
    # The kernel overshoots at edges.
    result = np.stack(bands, 2).clip(array.min(), array.max())
    return (result.round() if array.dtype.kind in "iu" else result).astype(array.dtype)


def _scaled(array: Array, given: tuple[float, float] | None) -> Tensor:
    """An image as `[1, C, H, W]` in [-1, 1]."""
    if array.dtype == np.uint8 and given in (None, _RANGES["uint8"]):
        return from_pixels(np.array(array)[None])
    known = _RANGES.get(array.dtype.name) or ((0.0, 1.0) if array.dtype.kind == "f" else None)
    if (chosen := given or known) is None:
        raise ValueError(f"the values of black and white in {array.dtype} are unknown: give range")
    low, high = chosen
    least, most = array.min(), array.max()
    # NaN is outside, too.
    if not (min(low, high) <= least and most <= max(low, high)):
        raise ValueError(
            f"it has values from {least:g} to {most:g}, outside the range {low:g} to {high:g}"
        )
    return from_values(array[None], Values("float32", (low, high)))
