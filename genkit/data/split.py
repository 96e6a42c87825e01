"""The simplest split: a subset of a data set's images, by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genkit.interfaces import Values

if TYPE_CHECKING:
    from genkit.images import Pixels
    from genkit.interfaces import View


class Subset:
    """Images of a data set that has `name(number)` and `images(numbers, seeds=None)`.

    `label(number)`, `caption(number)`, `view(number, seed=None)`, `classes`, `values` and
    `problems` are optional. Without them, images have no labels, captions and views, their
    originals have 8 bits, and the list of unreadable images starts empty.
    """

    def __init__(self, dataset: Any, numbers: Sequence[int]) -> None:
        self.dataset, self.numbers = dataset, numbers
        self.fingerprint: str = dataset.fingerprint
        self.channels: int = dataset.channels
        self.values: Values = getattr(dataset, "values", Values())
        self.native: bool = getattr(dataset, "native", False)
        self.classes: list[str] = getattr(dataset, "classes", [])
        self.problems: dict[str, str] = getattr(dataset, "problems", {})

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        """The image's name in the data set."""
        name: str = self.dataset.name(self.numbers[index])
        return name

    def images(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """The images uint8 `[B, H, W, channels]`."""
        pixels: Pixels = self.dataset.images([self.numbers[index] for index in indices], seeds)
        return pixels

    def view(self, index: int, seed: int | None = None) -> View | None:
        """The part of its original that the image with this seed shows, if known."""
        find = getattr(self.dataset, "view", None)
        return None if find is None else find(self.numbers[index], seed)

    @property
    def cropping(self) -> str:
        """A sentence on what crops leave out of the images; empty if nothing or unknown."""
        text: str = getattr(self.dataset, "cropping", "")
        return text

    @property
    def passed_over(self) -> str:
        """A sentence on files that were not read; empty if all were, or if that is unknown."""
        text: str = getattr(self.dataset, "passed_over", "")
        return text

    def label(self, index: int) -> int | None:
        """The number of the image's class in `classes`, or None."""
        find = getattr(self.dataset, "label", None)
        return None if find is None else find(self.numbers[index])

    def caption(self, index: int) -> str | None:
        """A text that describes the image, or None."""
        find = getattr(self.dataset, "caption", None)
        return None if find is None else find(self.numbers[index])
