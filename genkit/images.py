"""Conversion of images between files, pixels `[B, H, W, C]` and float tensors.

Pixels are uint8, or uint16 for originals with more than 8 bits. The float tensors, which models
see, are `[B, C, H, W]` in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genkit.errors import GenkitError, OptionError
from genkit.files import replacing
from genkit.interfaces import Values
from genkit.models import MOST_CHANNELS, RGB

Pixels = np.ndarray[Any, np.dtype[np.uint8 | np.uint16]]
_FULL = Values("uint16", (0, 2**16 - 1))
# The largest value of each type of pixels.
_LARGEST = {torch.uint8: 2**8 - 1, torch.uint16: 2**16 - 1}


def is_deep(images: Any) -> bool:
    """Whether the pixels of a data set or a split have 16 bits."""
    return bool(getattr(images, "values", Values()) != Values())


def values_fact(images: Any) -> dict[str, Any]:
    """The entry of a checkpoint for the values of images with more than 8 bits."""
    if not is_deep(images):
        return {}
    return {"values": {"type": images.values.type, "range": list(images.values.range)}}


def from_pixels(pixels: Tensor | Pixels) -> Tensor:
    """Floats `[B, C, H, W]` in [-1, 1] from pixels `[B, H, W, C]`, on the same device.

    Raises `GenkitError` for another dtype or shape.
    """
    tensor = torch.as_tensor(pixels)
    # More channels than any image has mean that the channels come first.
    channels_first = tensor.ndim == 4 and tensor.shape[3] > MOST_CHANNELS
    if tensor.dtype not in _LARGEST or tensor.ndim != 4 or channels_first:
        raise GenkitError(
            f"pixels must be uint8 or uint16 [B, H, W, C], not {tensor.dtype} {list(tensor.shape)}"
        )
    scale = 2 / _LARGEST[tensor.dtype]
    return tensor.permute(0, 3, 1, 2).float().mul_(scale).sub_(1).contiguous()


def to_uint8(images: Tensor) -> Pixels:
    """uint8 `[B, H, W, C]` from images `[B, C, H, W]` in [-1, 1], rounded and clamped."""
    scaled = images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pixels(images: Tensor, values: Values) -> Pixels:
    """Pixels `[B, H, W, C]` as a data set of these values has them: uint8, or else uint16."""
    if values == Values():
        return to_uint8(images)
    return to_values(images, _FULL)


def to_values(images: Tensor, values: Values) -> np.ndarray[Any, Any]:
    """Images `[B, C, H, W]` in [-1, 1] as an array `[B, H, W, C]` in the originals' type and units.

    They are clamped. Those of whole numbers are rounded.
    """
    if values == Values():
        return to_uint8(images)
    low, high = values.range
    unit = (images.detach().float().cpu().double().clamp(-1, 1) + 1) / 2
    result = (low + unit * (high - low)).permute(0, 2, 3, 1).numpy()
    kind = np.dtype(values.type)
    if kind.kind != "f":
        limits = np.iinfo(kind)
        result = result.round().clip(limits.min, limits.max)
    return np.ascontiguousarray(result.astype(kind))


def from_values(array: np.ndarray[Any, Any], values: Values) -> Tensor:
    """Images `[B, C, H, W]` in [-1, 1] from an array that `to_values` gave."""
    low, high = values.range
    unit = (torch.from_numpy(array.astype(np.float64)) - low) / (high - low)
    return unit.mul(2).sub(1).permute(0, 3, 1, 2).float().contiguous()


def as_rgb(images: Tensor) -> Tensor:
    """Images `[B, 3, H, W]`, for networks of colour images, from any number of channels.

    Of one or two channels the first is repeated; of more than three the first three are taken.
    """
    return images[:, :RGB] if images.shape[1] >= RGB else images[:, :1].expand(-1, RGB, -1, -1)


def rgb_note(name: str, channels: int) -> str:
    """A sentence on what `as_rgb` gives the network `name`; empty for three channels."""
    if channels > RGB:
        return f"{name} sees the first three of {channels} channels."
    if channels == RGB:
        return ""
    return f"{name} repeats the {'grey channel' if channels == 1 else 'first of 2 channels'}."


def shown(pixels: Pixels) -> Pixels:
    """The channels `[…, C]` to look at: grey, RGB or RGBA.

    Of two channels that is the first, and of more than four the first three.
    """
    channels = pixels.shape[-1]
    kept = 1 if channels == 2 else channels if channels <= 4 else RGB
    return pixels[..., :kept]


def to_pil(images: Tensor, bits: int = 8) -> list[Image.Image]:
    """PIL images from images `[B, C, H, W]` in [-1, 1]: L, LA, RGB or RGBA.

    Of more than four channels they show the first three. With 16 `bits`, images of one channel have
    the mode `I;16`, with white as 65535. `OptionError` for other bits, and for 16 bits in colour.
    """
    if images.ndim != 4:
        raise OptionError(f"images must be [B, C, H, W], not {list(images.shape)}")
    if bits not in (8, 16) or (bits == 16 and images.shape[1] != 1):
        raise OptionError(
            f"PIL images can have 8 bits, or 16 with one channel, not {bits} with {images.shape[1]}"
        )
    pixels = to_values(images, _FULL if bits == 16 else Values())
    kept = pixels if pixels.shape[-1] == 2 else shown(pixels)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in kept]


def grid(rows: list[Pixels], gap: int = 2, background: int = 255) -> Pixels:
    """One picture of rows of equally sized images `[B, H, W, C]`, with aligned columns."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, rows[0].shape[3])
    picture = np.full(shape, background, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            picture[top : top + height, left : left + width] = image
    return picture


def save_png(path: Path, pixels: Pixels, lasting: bool = True) -> None:
    """Write uint8 `[H, W, C]` to a PNG file to look at, whole or not at all.

    The file holds the channels that `shown` gives. It is flushed to disk if it is `lasting`.
    """
    with replacing(path, lasting) as temporary:
        to_picture(pixels).save(temporary, format="PNG")


def to_picture(pixels: Pixels) -> Image.Image:
    """The PIL image of pixels `[H, W, C]`, with the channels that `shown` gives."""
    pixels = shown(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def picture_grid(images: Tensor, columns: int = 8, height: int = 128) -> Pixels:
    """Images in rows of `columns`; small ones are enlarged to about a `height` for viewing."""
    every = enlarged(to_uint8(images), height)
    return grid([every[start : start + columns] for start in range(0, len(every), columns)])


def enlarged(images: Pixels, height: int = 128) -> Pixels:
    """Images `[B, H, W, C]` with each pixel repeated, up to about a `height`."""
    times = max(1, height // images.shape[1])
    return images.repeat(times, axis=1).repeat(times, axis=2)
