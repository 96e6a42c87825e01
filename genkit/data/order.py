"""The order of training images, determined by the seed, the step and the process alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from genkit.run.options import TrainingOptions

# An image's number and the seed of its crop.
Draw = tuple[int, int]


class DrawSampler(Sampler[list[Draw]]):
    """Batches of (image, seed) for one process, from the step `first` to the last.

    Every epoch has a new order. The batches of all processes in a step are the next consecutive
    images of that order, so processes draw different images, and the order does not depend on their
    number.
    """

    def __init__(
        self, run: TrainingOptions, images: int, process: int, processes: int, first: int
    ) -> None:
        self.run, self.images, self.process, self.processes, self.first = (
            run,
            images,
            process,
            processes,
            first,
        )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return (self.run.steps - self.first) * self.run.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self.run.batch_size
        for number in range(self.first * self.run.accumulate, self.run.steps * self.run.accumulate):
            start = (number * self.processes + self.process) * size
            yield [self._draw(draw) for draw in range(start, start + size)]

    def _draw(self, number: int) -> Draw:
        epoch, position = divmod(number, self.images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.run.seed, epoch]).permutation(self.images)
        return int(self._order[position]), self.run.seed * 1_000_003 + number
