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

from genkit.errors import GenkitError
from genkit.files import replacing
from genkit.interfaces import Values

Pixels = np.ndarray[Any, np.dtype[np.uint8 | np.uint16]]
# The largest value of each type of pixels.
_LARGEST = {torch.uint8: 2**8 - 1, torch.uint16: 2**16 - 1}


def is_deep(images: Any) -> bool:
    """Whether the pixels of a data set or a split have 16 bits."""
    return bool(getattr(images, "values", Values()) != Values())


def values_fact(images: Any) -> dict[str, Any]:
    """What a checkpoint records of the values of images with more than 8 bits."""
    if not is_deep(images):
        return {}
    return {"values": {"type": images.values.type, "range": list(images.values.range)}}


def from_pixels(pixels: Tensor | Pixels) -> Tensor:
    """Floats `[B, C, H, W]` in [-1, 1] from pixels `[B, H, W, C]`, on the same device.

    Raises `GenkitError` for another dtype or shape.
    """
    tensor = torch.as_tensor(pixels)
    # More channels than rows or columns means that the channels come first.
    channels_first = tensor.ndim == 4 and len(tensor) and tensor.shape[3] > min(tensor.shape[1:3])
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
    """Write uint8 `[H, W, C]` to a PNG file atomically; `lasting` as for `replacing`.

    RGB and RGBA are kept. Any other image is written in grey, from its first channel.
    """
    if pixels.shape[2] not in (3, 4):
        pixels = pixels[:, :, 0]
    with replacing(path, lasting) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def sample_grid(images: Tensor, reconstructions: Tensor, columns: int = 8) -> Pixels:
    """Inputs above reconstructions, in pairs of rows of `columns` images.

    Small images are enlarged for viewing.
    """
    above, below = (_enlarged(to_uint8(each)) for each in (images, reconstructions))
    rows = []
    for start in range(0, len(above), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
    return grid(rows)


def picture_grid(images: Tensor, columns: int = 8, height: int = 128) -> Pixels:
    """Images in rows of `columns`; small ones are enlarged to about a `height` for viewing."""
    every = _enlarged(to_uint8(images), height)
    return grid([every[start : start + columns] for start in range(0, len(every), columns)])


def _enlarged(images: Pixels, height: int = 128) -> Pixels:
    times = max(1, height // images.shape[1])
    return images.repeat(times, axis=1).repeat(times, axis=2)
