"""A prior's images, drawn or completed, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genkit.completion import fitting_pixels, kept_indices, side
from genkit.demo.figures import Figure
from genkit.demo.tokenizing import seen
from genkit.errors import OptionError
from genkit.images import from_pixels
from genkit.prior import Prior

# The most images that the page draws at once.
MOST = 64


def drawn(
    prior: Prior,
    number: int,
    seed: int,
    classes: Sequence[int] = (),
    **rules: Any,
) -> list[Figure]:
    """Images that a prior draws, as `genkit sample` does; `classes` are taken in turn.

    `OptionError` for a rule that the prior or the draw has no use for.
    """
    chosen = _in_turn(number, classes)
    images = prior.generate(number, seed=seed, classes=chosen, **rules)
    return _numbered(prior, images, chosen)


def completed(
    prior: Prior,
    file: str,
    keep: str,
    share: float,
    number: int,
    seed: int,
    classes: Sequence[int] = (),
    **rules: Any,
) -> tuple[list[Figure], list[Figure]]:
    """A picture file with the part that is kept, and its completions.

    `keep` is top, bottom, left or right, and `share` the kept part of the height or the width.
    """
    image = from_pixels(torch.from_numpy(fitting_pixels(prior, file)))
    mask = side(keep, *prior.size, share)
    chosen = _in_turn(number, classes)
    kept = kept_indices(prior, image, mask)
    images = prior.generate(number, seed=seed, classes=chosen, kept=kept, **rules)
    blank = torch.where(mask, image, 0.0)
    whole = sum(int((level >= 0).sum()) for level in kept)
    given = [
        Figure(seen(image)[0], "Image", "as the model reads it"),
        Figure(seen(blank)[0], "Kept part", f"{whole:,} of {len(prior.layout):,} indices"),
    ]
    return given, _numbered(prior, images, chosen)


def _in_turn(number: int, classes: Sequence[int]) -> list[int] | None:
    if type(number) is not int or not 1 <= number <= MOST:
        raise OptionError(f"the page draws 1 to {MOST} images at once, not {number}")
    return [classes[image % len(classes)] for image in range(number)] if classes else None


def _numbered(prior: Prior, images: torch.Tensor, classes: list[int] | None) -> list[Figure]:
    names = [prior.classes[each] for each in classes] if classes else [""] * len(images)
    return [
        Figure(picture, f"{number}", name)
        for number, (picture, name) in enumerate(zip(seen(images), names, strict=True))
    ]
