"""The training image that is nearest to each of some drawn images: does a prior memorise?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from genkit.data.reading import read
from genkit.images import Pixels, from_pixels
from genkit.interfaces import Split

_BATCH = 256


class Nearest(NamedTuple):
    """For each of n images: the nearest one, its name, and the mean squared distance of pixels.

    `pictures` are pixels `[n, H, W, C]`; distances are of values in [0, 1].
    """

    pictures: Pixels
    names: list[str]
    distances: list[float]


def nearest(
    images: Pixels, split: Split, progress: Callable[[int, int], object] = lambda done, total: None
) -> Nearest:
    """The nearest images of a split to images `[n, H, W, C]` of the same size and type."""
    mine = _unit(images)
    best = torch.full((len(mine),), torch.inf)
    pictures, names = np.zeros_like(images), [""] * len(images)
    for start in range(0, len(split), _BATCH):
        numbers = list(range(start, min(start + _BATCH, len(split))))
        kept, pixels = read(split, numbers)
        if kept:
            theirs = _unit(pixels)
            distances, places = (torch.cdist(mine, theirs).square() / mine.shape[1]).min(1)
            for row in (distances < best).nonzero()[:, 0].tolist():
                place = int(places[row])
                pictures[row], names[row] = pixels[place], split.name(numbers[kept[place]])
            best = torch.minimum(best, distances)
        progress(numbers[-1] + 1, len(split))
    return Nearest(pictures, names, best.tolist())


def _unit(pixels: Pixels) -> torch.Tensor:
    """Rows of values that differ as much as images in [0, 1] do."""
    return from_pixels(torch.from_numpy(pixels)).flatten(1) / 2
