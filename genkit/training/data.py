"""The stream of training images.

Which image comes at which step follows from the seed, the step and the process alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from genkit.data import read_varied
from genkit.interfaces import Dataset
from genkit.run import Run

# The most workers that are chosen unasked.
_MOST_WORKERS = 8

Draw = tuple[int, int]
Batch = tuple[Tensor, dict[str, str]]


class Draws(Sampler[list[Draw]]):
    """Batches of (image, seed) for one process, from the step `first` to the last.

    Every epoch is shuffled anew. All processes' batches of a step together are the next stretch of
    one shuffled order, so that no two processes draw the same image and any number of them draws
    the same in all.
    """

    def __init__(self, run: Run, images: int, process: int, processes: int, first: int) -> None:
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


class _Batches(TorchDataset[Batch]):
    """A data set as the loader wants it.

    It gives whole batches of uint8 pixels, and what could not be read so far.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        indices, seeds = zip(*draws, strict=True)
        return torch.from_numpy(read_varied(self.dataset, indices, seeds)), self.dataset.problems


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch


def workers_of(run: Run, processes: int) -> int:
    """How many workers a process of a run has here.

    Unless told, it is one a core that the process may use and does not need itself, if there is a
    GPU to train on; without, training takes all cores, and many times as long as preparing images.
    """
    if run.workers >= 0:
        return run.workers
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    # What launches processes says how many of them are on this machine.
    spare = cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes)) - 1
    # A single worker is no faster than none.
    return min(spare, _MOST_WORKERS) if torch.cuda.is_available() and spare > 1 else 0


def loader(
    run: Run, dataset: Dataset, process: int, processes: int, first: int
) -> DataLoader[Batch]:
    """Batches uint8 `[B, H, W, 3]` of this process from step `first` on.

    A step takes `accumulate` of them.
    """
    draws = Draws(run, len(dataset), process, processes, first)
    workers = workers_of(run, processes)
    # Forked workers share what a data set keeps in memory; elsewhere than on Linux it is not safe.
    fork = workers and sys.platform == "linux"
    return DataLoader(
        _Batches(dataset),
        batch_sampler=draws,
        collate_fn=_as_is,
        num_workers=workers,
        multiprocessing_context="fork" if fork else None,
        worker_init_fn=_leave_interrupts_to_the_trainer,
        pin_memory=torch.cuda.is_available(),
    )
