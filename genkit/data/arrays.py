"""Image files of any number of channels and bits, as pixels `[H, W, C]`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
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
from genkit.images import Pixels
from genkit.interfaces import Values

Array = np.ndarray[Any, Any]
Source = Path | IO[bytes]

MOST_CHANNELS = 16
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# How Pillow unpacks PNGs with 16 bits per channel: it drops the lower eight.
_DEEP_PNG = {"RGB;16B": 3, "RGBA;16B": 4, "LA;16B": 2}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
# The weights of red, green and blue in grey (ITU-R BT.601), as Pillow has them.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Reading:
    """How image files become pixels.

    `deep` pixels are uint16. `range` is the range of the originals' values; None takes that of each
    file's type. `bands` are the numbers of the channels to read, from 1. Unless `converts`, grey
    images and images in colour are refused where the other kind is wanted.
    """

    channels: int = 3
    deep: bool = False
    range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()
    background: tuple[int, ...] = (255, 255, 255)
    most: int = MAX_PIXELS
    converts: bool = True

    @property
    def is_scaled(self) -> bool:
        """Whether it may change the values of 8-bit channels, or leave some out."""
        return self.deep or self.range is not None or bool(self.bands)

    def is_usual(self, source: Source) -> bool:
        """Whether Pillow alone reads the file, to 8-bit RGB."""
        return (
            self.channels == 3
            and not self.is_scaled
            and _without_pillow(source, self.most, whole=False) is None
        )


class About(NamedTuple):
    """Facts of an image file's header: channels without alpha, and values."""

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
    if (raw := _without_pillow(source, most, whole=False)) is not None:
        return About(raw.array.shape[2] - raw.alpha, raw.values)

    def read(image: Image.Image) -> About:
        return About(1 if _is_grey(image) else 3, _values(image))

    return from_opened(source, read, most)


def upright_size(source: Source, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image file after its rotation."""
    if (raw := _without_pillow(source, most, whole=False)) is not None:
        return raw.array.shape[1], raw.array.shape[0]

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        # Pillow opens a TIFF with its upright size.
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in range(5, 9)
        return (height, width) if turned else (width, height)

    return from_opened(source, size, most)


def read_pixels(source: Source, reading: Reading) -> Pixels:
    """An image file's pixels `[H, W, channels]`, upright; `ValueError` if it does not fit."""
    return fitted(read_raw(source, reading.most), reading)


def fitted(raw: Raw, reading: Reading) -> Pixels:
    """The pixels of a file's own array; `ValueError` if it does not fit."""
    array, alpha, _ = raw
    fits = array.shape[2] == reading.channels and (not alpha or reading.channels in (2, 4))
    if array.dtype == np.uint8 and fits and not reading.is_scaled:
        return array
    return _scaled(raw, reading)


def read_raw(source: Source, most: int = MAX_PIXELS) -> Raw:
    """A file's own array, upright."""
    raw = _without_pillow(source, most)
    return raw or from_opened(source, lambda image: raw_image(image, source), most)


def raw_array(array: Array) -> Raw:
    """An array `[H, W]`, `[H, W, C]` or `[C, H, W]` as of a file."""
    return Raw(_channels_last(array), False, _values_of(array.dtype))


def _without_pillow(source: Source, most: int, whole: bool = True) -> Raw | None:
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
    if image.mode == "F":
        return Values("float32", (0, 1))
    return Values("int16") if image.mode == "I" else Values()


def _values_of(dtype: Any, bits: int = 16) -> Values:
    """The values of an array of a NumPy type; `ValueError` for a type of no image."""
    if dtype == np.uint8:
        return Values()
    if dtype == np.uint16:
        return Values("uint16", (0, 2**bits - 1))
    if dtype.kind == "f":
        return Values("float32", (0, 1))
    if dtype.kind in "iu":
        return Values("int16")
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
            "reading it needs the package tifffile: install genkit-vq[tiff]"
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
                        "reading it needs the package imagecodecs: install genkit-vq[tiff]"
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


def _scaled(raw: Raw, reading: Reading) -> Pixels:
    """The pixels of a file's array, with the channels and the range of `reading`."""
    array, alpha = raw.array, raw.alpha
    if reading.bands:
        if max(reading.bands) > array.shape[2]:
            raise ValueError(
                f"it has {array.shape[2]} channels, and --data.bands asks for {max(reading.bands)}"
            )
        array, alpha = array[:, :, [band - 1 for band in reading.bands]], False
    low, high = _range(raw, reading)
    colours = array[:, :, : array.shape[2] - alpha].astype(np.float32)
    _refuse_outside(colours, low, high, reading)
    colours = (colours - low) / (high - low)
    opacity = None
    if alpha:
        opacity = array[:, :, -1:].astype(np.float32) / raw.values.range[1]
    fitted = _with_channels(colours, opacity, reading)
    largest, dtype = (65535, np.uint16) if reading.deep else (255, np.uint8)
    return np.rint(fitted * largest).astype(dtype)


def _range(raw: Raw, reading: Reading) -> tuple[float, float]:
    if reading.range is not None:
        return reading.range
    if raw.values.type == "int16":
        raise ValueError("its integers have no range: give it (--data.range LOW,HIGH)")
    return raw.values.range


def _refuse_outside(colours: Array, low: float, high: float, reading: Reading) -> None:
    least, most = float(colours.min()), float(colours.max())
    if not (low <= least and most <= high):  # NaN too.
        values = f"it has values from {least:g} to {most:g}"
        if reading.range is None:
            raise ValueError(f"{values}: give their range (--data.range LOW,HIGH)")
        raise ValueError(f"{values}, outside the range {low:g} to {high:g} (--data.range)")


def _with_channels(colours: Array, opacity: Array | None, reading: Reading) -> Array:
    """Colours `[H, W, C]` in [0, 1] as the channels that `reading` asks for."""
    has, wanted = colours.shape[2], reading.channels
    may_add = opacity is not None or reading.converts
    keeps_alpha = wanted in (2, 4) and has in (1, 3) and may_add
    if opacity is not None and not keeps_alpha:
        behind = np.asarray(reading.background, dtype=np.float32) / 255
        behind = behind if has == 3 else behind @ np.asarray(_LUMA, dtype=np.float32)
        colours = colours * opacity + behind * (1 - opacity)
    without = wanted - 1 if keeps_alpha else wanted
    if has != without:
        if {has, without} != {1, 3} or not reading.converts:
            raise ValueError(mismatch(has, wanted))
        colours = (
            colours.repeat(3, axis=2)
            if has == 1
            else (colours @ np.asarray(_LUMA, dtype=np.float32))[:, :, None]
        )
    if keeps_alpha:
        opacity = np.ones_like(colours[:, :, :1]) if opacity is None else opacity
        colours = np.concatenate([colours, opacity], axis=2)
    return colours.clip(0, 1)


def mismatch(has: int, wanted: int) -> str:
    """The sentence on an image whose channels differ from those wanted."""
    text = f"it has {has} channel{'s' * (has > 1)}, not {wanted}"
    if {has, wanted} == {1, 3}:
        return f"{text}: --data.channels {min(has, wanted)} or {max(has, wanted)} converts all"
    return f"{text}: keep such images apart, or choose channels with --data.bands"


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
    """The values of the type that holds those of all files."""
    return max(every, key=lambda values: (_ORDER.index(values.type), values.range[1]))
