"""Pictures with a caption and labels, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genkit.images import Pixels, enlarged, grid, shown, to_uint8

_SIZE, _GAP = 14, 6
_INK = 40


def captioned(picture: Pixels, caption: str, labels: Sequence[str] = ()) -> Pixels:
    """A picture `[H, W, C]` under a line of text, with labels to the left of its rows.

    There is one label for each row, or none at all. Rows have the same height.
    """
    picture = shown(picture)
    font = ImageFont.load_default(_SIZE)
    left = max((round(font.getlength(label)) + 2 * _GAP for label in labels), default=0)
    top = _SIZE + 2 * _GAP
    height, width, channels = picture.shape
    whole = max(width + left, round(font.getlength(caption)) + 2 * _GAP)
    margins = Image.new("L", (whole, height + top), 255)
    draw = ImageDraw.Draw(margins)
    draw.text((left or _GAP, top // 2), caption, _INK, font, anchor="lm")
    for number, label in enumerate(labels):
        middle = top + round((number + 0.5) * height / len(labels))
        draw.text((left - _GAP, middle), label, _INK, font, anchor="rm")
    result = np.repeat(np.asarray(margins)[..., None], channels, axis=2)
    if channels == 4:
        result[..., 3] = 255
    result[top:, left : left + width] = picture
    return result


def sample_grid(
    images: Tensor,
    others: Tensor,
    caption: str,
    labels: tuple[str, str] = ("original", "reconstruction"),
    columns: int = 8,
) -> Pixels:
    """Images `[B, C, H, W]` above others, in labelled pairs of rows of `columns` images.

    Small images are enlarged.
    """
    above, below = (enlarged(to_uint8(each)) for each in (images, others))
    rows = []
    for start in range(0, len(above), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
    return captioned(grid(rows), caption, labels * (len(rows) // 2))
