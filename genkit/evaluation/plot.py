"""Bar charts of codebook usage, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genkit.evaluation.usage import code_use
from genkit.images import Pixels

_WIDTH, _HEIGHT = 640, 150
_LEFT, _TOP, _GAP = 88, 34, 46
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
# The range of the logarithmic scale: from 1/64 to 16 times the mean count.
_LOWEST, _HIGHEST = -6, 4
_COLOURS = ((62, 106, 168), (214, 130, 50))
_DEAD, _INK, _LINE = (200, 40, 40), (40, 40, 40), (205, 205, 205)


def code_histogram(columns: Sequence[tuple[str, Sequence[Tensor]]]) -> Pixels:
    """A picture uint8 `[H, W, 3]` of counts `[Q, K]`.

    It has one row per level and one column per titled list. The codes of all codebooks of a level
    are sorted together by the first column's counts. A bar's height is a code's count over the mean
    count, on a logarithmic scale. Red marks below the axis are unused codes.
    """
    levels = len(columns[0][1])
    size = (
        _LEFT + len(columns) * (_WIDTH + _GAP),
        levels * (_TOP + _HEIGHT + _GAP) + 6,
    )
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for level in range(levels):
        order = np.argsort(-columns[0][1][level].flatten().numpy(), kind="stable")
        bottom = (level + 1) * (_TOP + _HEIGHT + _GAP) - _GAP
        for power in range(_LOWEST, _HIGHEST + 1, 2):
            text = f"1/{2**-power}" if power < 0 else str(2**power)
            draw.text((_LEFT - 8, _y(power, bottom)), text, _INK, font, anchor="rm")
        _upright(picture, "count / mean count", (20, bottom - _HEIGHT // 2), font)
        for column, (title, counts) in enumerate(columns):
            left = _LEFT + column * (_WIDTH + _GAP)
            use = code_use(counts[level])
            text = (
                f"level {level}, {title}: {use['active']} of {counts[level].numel()} codes, "
                f"perplexity {use['perplexity']:.0f}"
            )
            draw.text((left, bottom - _HEIGHT - 8), text, _INK, font, anchor="ls")
            for power in range(_LOWEST, _HIGHEST + 1, 2):
                y = _y(power, bottom)
                draw.line((left, y, left + _WIDTH, y), _INK if power == 0 else _LINE)
            axis = f"codes, by their use in {columns[0][0]}; red marks: unused codes"
            draw.text((left + _WIDTH // 2, bottom + 22), axis, _INK, font, anchor="mm")
            _bars(draw, counts[level].flatten().numpy()[order], left, bottom, _COLOURS[column % 2])
    return np.asarray(picture)


def _bars(
    draw: ImageDraw.ImageDraw,
    counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    left: int,
    bottom: int,
    colour: tuple[int, int, int],
) -> None:
    # The codes drawn in each column of pixels, at least one.
    edges = np.linspace(0, len(counts), _WIDTH + 1).astype(int)
    first, after = edges[:-1], np.maximum(edges[:-1] + 1, edges[1:])
    dead, used = (
        total[after] - total[first]
        for total in (np.cumsum([0, *each]) for each in (counts == 0, counts))
    )
    means = used / (after - first) / max(counts.mean(), 1e-9)
    powers = np.clip(np.log2(np.maximum(means, 1e-9)), _LOWEST + 0.1, _HIGHEST)
    for x in range(_WIDTH):
        if dead[x]:
            draw.line((left + x, bottom + 2, left + x, bottom + 8), _DEAD)
        if used[x]:
            draw.line((left + x, bottom, left + x, _y(float(powers[x]), bottom)), colour)


def _upright(picture: Image.Image, text: str, centre: tuple[int, int], font: Font) -> None:
    """Write a text from bottom to top."""
    box = font.getbbox(text)
    label = Image.new("RGB", (round(box[2]) + 1, round(box[3]) + 3), "white")
    ImageDraw.Draw(label).text((0, 0), text, _INK, font)
    turned = label.rotate(90, expand=True)
    picture.paste(turned, (centre[0] - turned.width // 2, centre[1] - turned.height // 2))


def _y(power: float, bottom: int) -> int:
    return round(bottom - (power - _LOWEST) / (_HIGHEST - _LOWEST) * _HEIGHT)
