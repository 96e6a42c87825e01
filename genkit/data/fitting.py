"""Pixels of image files with the channels, the range and the bits that a data set has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genkit.data import MAX_PIXELS
from genkit.data.arrays import Array, Raw, Source, read_raw, without_pillow
from genkit.images import Pixels

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

    @property
    def is_plain(self) -> bool:
        """Whether pixels are RGB as in 8-bit files."""
        return self.channels == 3 and not self.is_scaled

    def is_usual(self, source: Source) -> bool:
        """Whether Pillow alone reads the file, to 8-bit RGB."""
        return self.is_plain and without_pillow(source, self.most, whole=False) is None


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
