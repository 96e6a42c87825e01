"""Discs of random colours at random places; read your own images in their place."""

from collections.abc import Sequence

import genkit
import numpy as np

from genkit_template_name import TemplateNameOptions


class TemplateName:
    """Images by number: the held-out ones come after those to train on."""

    channels = 3
    generated = True  # Computed images need no check for readability.

    def __init__(self, options: TemplateNameOptions, size: tuple[int, int], seed: int) -> None:
        self.size, self.options = size, options
        self.classes: list[str] = []
        # It must differ between sets of images.
        self.fingerprint = f"template-name {options.size} {options.heldout}"

    def split(self, name: str) -> genkit.Subset:
        """The split `train`, `heldout` or `all`."""
        count, end = self.options.size, self.options.size + self.options.heldout
        numbers = {"train": range(count), "heldout": range(count, end), "all": range(end)}
        return genkit.Subset(self, numbers[name])

    def name(self, number: int) -> str:
        """The image's name."""
        return f"template-name-{number}"

    def images(
        self, numbers: Sequence[int], seeds: Sequence[int] | None = None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Pixels `[B, H, W, 3]`; a seed could vary its image."""
        return np.stack([self._disc(np.random.default_rng(number)) for number in numbers])

    def _disc(self, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        rows, columns = (np.linspace(0, 1, side) for side in self.size)
        middle, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.3)
        inside = np.hypot(rows[:, None] - middle[0], columns - middle[1]) < radius
        colours = rng.integers(0, 256, (2, 3), np.uint8)
        return colours[inside.astype(np.intp)]
