"""A tokenizer's reconstruction of a picture file, its indices, and the share of each level."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from genkit.checkpoint.model import description
from genkit.demo.figures import Figure
from genkit.demo.levels import definition, shares
from genkit.evaluation.images import all_images
from genkit.evaluation.metrics import psnr
from genkit.images import Pixels, from_pixels, shown, to_pixels, to_uint8
from genkit.reporting.charts import COLOURS, index_colours
from genkit.tiles import encode_tiles, is_whole, pad_pixels, reconstruct_tiles
from genkit.tokenizer import Tokenizer
from genkit.tokens import TILE

# Maps of a level with several codebooks, at most.
_MAPS = 8
# Differences are multiplied by this factor, to be visible.
_TIMES = 4


class Tokenized(NamedTuple):
    """Figures of a picture: itself and its reconstruction, maps of its indices, shares of levels.

    `facts` are sentences on its size and its bits, `about` what the shares show.
    """

    pictures: list[Figure]
    maps: list[Figure]
    shares: list[Figure]
    facts: str
    about: str


def tokenized(tokenizer: Tokenizer, file: str) -> Tokenized:
    """The figures of a picture file in its own size, as `genkit reconstruct` computes them.

    `DataError` for a file that is not an image, or has other channels than the model takes.
    """
    pixels = picture(tokenizer, file, None)
    convert = functools.partial(to_pixels, values=tokenizer.values)
    made = reconstruct_tiles(tokenizer, pixels, convert=convert)
    original, copy = from_pixels(pixels), from_pixels(made)
    indices = encode_tiles(tokenizer, pad_pixels(tokenizer, pixels))
    small = is_whole((pixels.shape[1], pixels.shape[2]), TILE)
    return Tokenized(
        _compared(original, copy),
        list(_maps(tokenizer, indices)),
        list(_shares(tokenizer, indices, original)) if small else [],
        f"{_facts(tokenizer, original, indices)} {channels_note(tokenizer)}".rstrip(),
        definition(tokenizer)
        if small
        else f"Levels are shown only for images of at most {TILE:,} x {TILE:,} pixels.",
    )


def picture(tokenizer: Tokenizer, file: str, size: tuple[int, int] | None) -> Pixels:
    """A picture file `[1, H, W, C]` as a tokenizer takes it, resized and cropped to a `size`."""
    return all_images(file, size, once=True, model=description(tokenizer)).images([0])


def seen(images: Tensor) -> list[Pixels]:
    """Images `[B, C, H, W]` in [-1, 1] as pictures that a page shows."""
    return list(shown(to_uint8(images)))


def colours_note(tokenizer: Tokenizer) -> str:
    """A sentence on the colours of the maps of indices."""
    own = "Each code has a colour of its own."
    few = f"There are {COLOURS} colours, so codes with near numbers share one."
    return f"The indices of each level. {few if max(tokenizer.codebook_sizes) > COLOURS else own}"


def channels_note(tokenizer: Tokenizer) -> str:
    """A sentence on how images are shown that a page cannot show as they are; else empty."""
    channels = tokenizer.channels
    how = {1: "", 2: "the first of 2 channels", 3: "", 4: "the fourth channel as opacity"}
    text = how.get(channels, f"the first three of {channels} channels")
    return f"Pictures show {text}; the PSNR is of all channels." if text else ""


def _facts(tokenizer: Tokenizer, image: Tensor, indices: list[Tensor]) -> str:
    """Sentences on the size of an image `[1, C, H, W]`, its indices and their bits."""
    (height, width), padded = image.shape[2:], tokenizer.pad(image).shape[2:]
    count, own = sum(level.numel() for level in indices), tokenizer.bits_per_pixel
    bits = own * padded.numel()
    text = (
        f"{height} x {width} pixels (high x wide); {count:,} indices, {bits:,.0f} bits in all, "
        f"{bits / (height * width):.3f} bits per pixel."
    )
    if padded != image.shape[2:]:
        text += (
            f" These are more than the model's {own:.3f}, because the image is padded to "
            f"{padded[0]} x {padded[1]} pixels."
        )
    return text


def _compared(original: Tensor, copy: Tensor) -> list[Figure]:
    """A picture, its reconstruction and their difference."""
    before, after = seen(original)[0], seen(copy)[0]
    apart = np.abs(before.astype(int) - after.astype(int))[..., :3] * _TIMES
    return [
        Figure(before, "Image", "as the model reads it"),
        Figure(after, "Reconstruction", _psnr(original, copy)),
        Figure(apart.clip(0, 255).astype(np.uint8), "Difference", f"multiplied by {_TIMES}"),
    ]


def _psnr(original: Tensor, copy: Tensor) -> str:
    decibels = float(psnr(original, copy))
    return f"PSNR {decibels:.2f} dB"


def _maps(tokenizer: Tokenizer, indices: list[Tensor]) -> Iterator[Figure]:
    """The indices of an image in colours."""
    levels = zip(indices, tokenizer.codebooks, strict=True)
    for level, (values, (count, size)) in enumerate(levels):
        grid = values[0].reshape(*values.shape[1:3], count)
        rows, columns = grid.shape[:2]
        for codebook in range(min(count, _MAPS)):
            own = grid[..., codebook]
            which = f", codebook {codebook + 1} of {count}" if count > 1 else ""
            yield Figure(
                index_colours(own, size),
                f"Level {level}{which}",
                f"{rows} x {columns} indices; {len(own.unique()):,} of {size:,} codes",
            )


def _shares(tokenizer: Tokenizer, indices: list[Tensor], original: Tensor) -> Iterator[Figure]:
    device = next(tokenizer.parameters()).device
    height, width = original.shape[2:]
    for name, images in shares(tokenizer, [level.to(device) for level in indices]):
        own = images[:, :, :height, :width].cpu()
        yield Figure(seen(own)[0], name[0].upper() + name[1:], _psnr(original, own))
