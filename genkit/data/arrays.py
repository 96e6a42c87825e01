"""Image files of any number of channels and bits, as arrays `[H, W, C]` of their own values."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from genkit.data import MAX_PIXELS
from genkit.data.opening import (
    BITS_PER_SAMPLE,
    ORIENTATION,
    from_opened,
    refuse_endless,
    refuse_too_large,
    spare_bits,
)
from genkit.interfaces import Values
from genkit.models import MOST_CHANNELS
from genkit.plugin.installing import to_install

Array = np.ndarray[Any, Any]
Source = Path | IO[bytes]

_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# How Pillow unpacks PNGs with 16 bits per channel: it drops the lower eight.
_DEEP_PNG = {"RGB;16B": 3, "RGBA;16B": 4, "LA;16B": 2}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class About(NamedTuple):
    """An image file's header: stored width and height, channels without alpha, and values."""

    size: tuple[int, int]
    channels: int
    values: Values


class Raw(NamedTuple):
    """A file's array `[H, W, C]`, the alpha channel last, with its own range of values."""

    array: Array
    alpha: bool
    values: Values


def check_header(source: Source, most: int = MAX_PIXELS) -> None:
    """Check that an image file can be opened. Any exception is the reason why it cannot."""
    about(source, most)


def about(source: Source, most: int = MAX_PIXELS) -> About:
    """The facts of an image file's header; `ValueError` above `most` pixels."""
    if (raw := without_pillow(source, most, whole=False)) is not None:
        height, width, channels = raw.array.shape
        return About((width, height), channels - raw.alpha, raw.values)

    def read(image: Image.Image) -> About:
        return About(image.size, 1 if _is_grey(image) else 3, _values(image))

    return from_opened(source, read, most)


def upright_size(source: Source, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image file after its rotation."""
    if (raw := without_pillow(source, most, whole=False)) is not None:
        return raw.array.shape[1], raw.array.shape[0]

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        # Pillow opens a TIFF with its upright size.
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in range(5, 9)
        return (height, width) if turned else (width, height)

    return from_opened(source, size, most)


def read_raw(source: Source, most: int = MAX_PIXELS) -> Raw:
    """A file's own array, upright."""
    raw = without_pillow(source, most)
    return raw or from_opened(source, lambda image: raw_image(image, source), most)


def raw_array(array: Array) -> Raw:
    """An array `[H, W]`, `[H, W, C]` or `[C, H, W]` as of a file."""
    return Raw(_channels_last(array), False, _values_of(array.dtype))


def without_pillow(source: Source, most: int, whole: bool = True) -> Raw | None:
    """A file that Pillow cannot read in full; None for other files.

    Without `whole` its array may have the right shape and type alone.
    """
    start = _start(source)
    if start.startswith(_NPY):
        array = _npy(source, most)
        return Raw(np.asarray(array) if whole else array, False, _values_of(array.dtype))
    if start.startswith(_TIFF) and not _pillow_reads_all(source):
        return _tiff(source, most, whole)
    return None


def raw_image(image: Image.Image, source: Source | None = None) -> Raw:
    """The array of an image that Pillow has opened, from its file if Pillow would reduce it."""
    values = _values(image)
    raw = _unpacking(image)
    if source is not None and image.format == "PNG" and raw in _DEEP_PNG:
        turn = image.getexif().get(ORIENTATION, 1)
        return Raw(_turned(_deep_png(source), turn), _DEEP_PNG[str(raw)] != 3, values)
    if values.type != "uint8":
        clear = image.info.get("transparency")
        ImageOps.exif_transpose(image, in_place=True)
        array = np.asarray(image)
        if isinstance(clear, int):
            opaque = np.where(array == clear, 0, values.range[1])
            return Raw(np.stack([array, opaque], axis=2), True, values)
        return Raw(array[:, :, None], False, values)
    ImageOps.exif_transpose(image, in_place=True)
    grey, alpha = _is_grey(image), image.has_transparency_data
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return Raw(array if array.ndim == 3 else array[:, :, None], alpha, values)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _unpacking(image: Image.Image) -> Any:
    """How Pillow unpacks the pixels of a file that it has opened and not yet read."""
    tiles = getattr(image, "tile", None)
    return tiles[0].args if tiles else None


def _values(image: Image.Image) -> Values:
    """The values of an opened image, before Pillow converts them."""
    raw = _unpacking(image)
    if (spare := spare_bits(image)) is not None:
        return Values("uint16", (0, 2 ** (8 + spare) - 1))
    if image.format == "PNG" and raw in _DEEP_PNG:
        return Values("uint16", (0, 65535))
    # 32-bit integers do not fit 16 bits.
    return Values("float32", (0, 1)) if image.mode in ("F", "I") else Values()


def _values_of(dtype: Any, bits: int = 16) -> Values:
    """The values of an array of a NumPy type; `ValueError` for a type of no image."""
    if dtype == np.uint8:
        return Values()
    if dtype == np.uint16:
        return Values("uint16", (0, 2**bits - 1))
    if dtype in (np.int8, np.int16):
        return Values("int16")
    if dtype.kind in "fiu":
        return Values("float32", (0, 1))
    raise ValueError(f"its values are of type {dtype}: give integers or floats")


def _npy(source: Source, most: int) -> Array:
    """The array `[H, W, C]` of a `.npy` file; a path's is mapped into memory."""
    if isinstance(source, Path):
        refuse_endless(source)
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    else:
        source.seek(0)
        array = np.load(source, allow_pickle=False)
    array = _channels_last(array)
    refuse_too_large(array.shape[1], array.shape[0], most)
    return array


def _channels_last(array: Array) -> Array:
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3 and array.shape[2] <= MOST_CHANNELS:
        return array
    if array.ndim == 3 and array.shape[0] <= MOST_CHANNELS:
        return np.moveaxis(array, 0, 2)
    shape = " x ".join(map(str, array.shape))
    raise ValueError(
        f"it is an array of {shape}; an image has two sides and at most {MOST_CHANNELS} channels"
    )


def _tiff(source: Source, most: int, whole: bool) -> Raw:
    """A TIFF that Pillow would refuse or reduce to eight bits."""
    try:
        library = importlib.import_module("tifffile")
    except ImportError as error:
        raise ValueError(
            f"reading it needs the package tifffile: {to_install('genkit-vq[tiff]')}"
        ) from error
    if not isinstance(source, Path):
        source.seek(0)
    with library.TiffFile(source) as file:
        series, page = file.series[0], file.pages[0]
        shape = [side for side in series.shape if side > 1]
        shape += [1] * (2 - len(shape))
        empty = _channels_last(np.broadcast_to(np.zeros(1, series.dtype), shape))
        refuse_too_large(empty.shape[1], empty.shape[0], most)
        array = empty
        if whole:
            try:
                array = _channels_last(series.asarray().reshape(shape))
            except ValueError as error:
                if "imagecodecs" in str(error):
                    raise ValueError(
                        f"reading it needs the package imagecodecs: {to_install('genkit-vq[tiff]')}"
                    ) from error
                raise
        alpha = array.shape[2] in (2, 4) and any(int(kind) in (1, 2) for kind in page.extrasamples)
        orientation = page.tags.get(ORIENTATION)
        turned = _turned(array, int(orientation.value) if orientation else 1)
        return Raw(turned, alpha, _values_of(array.dtype, page.bitspersample))


def _pillow_reads_all(source: Source) -> bool:
    """Whether Pillow reads a TIFF without loss."""

    def reads(image: Image.Image) -> bool:
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
        # Pillow drops bands beyond colours and alpha, and bits beyond eight unless it is grey.
        return len(bits) <= len(image.getbands()) and (max(bits) <= 8 or len(bits) == 1)

    try:
        return from_opened(source, reads, 2**40)
    except ValueError:
        return False


def _deep_png(source: Source) -> Array:
    """A PNG `[H, W, C]` with 16 bits per channel."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    if isinstance(source, Path):
        content = source.read_bytes()
    else:
        source.seek(0)
        content = source.read()
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels = decode_png(data, ImageReadMode.UNCHANGED)
    return np.asarray(pixels.permute(1, 2, 0).numpy())


def _turned(array: Array, orientation: int) -> Array:
    """An array turned as the EXIF orientation asks."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _start(source: Source) -> bytes:
    """The first bytes of a file, which tell its kind."""
    if isinstance(source, Path):
        refuse_endless(source)
        with source.open("rb", buffering=0) as file:
            return file.read(len(_NPY))
    source.seek(0)
    start = source.read(len(_NPY))
    source.seek(0)
    return start


_ORDER: tuple[Literal["uint8", "uint16", "int16", "float32"], ...] = (
    "uint8",
    "uint16",
    "int16",
    "float32",
)


def widest(every: Sequence[Values]) -> Values:
    """The values of the file whose type holds the values of all."""
    return max(every, key=lambda values: (_ORDER.index(values.type), values.range[1]))
