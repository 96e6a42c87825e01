"""The stream of training images.

Which image comes at which step follows from the seed, the step and the process alone.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from genkit.data import read_varied
from genkit.errors import TrainingError
from genkit.images import Pixels
from genkit.interfaces import Dataset
from genkit.run import Run
from genkit.training.launcher import stop_signals

# The most workers that are chosen unasked.
_MOST_WORKERS = 8
# Batches that a worker prepares ahead.
_AHEAD = 2

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


class _Numbered(Sampler[Any]):
    """Draws, each batch with its number."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __iter__(self) -> Iterator[Any]:
        return enumerate(self.draws)


class _Batches(TorchDataset[Batch]):
    """A data set as the loader wants it.

    It gives whole batches of uint8 pixels, and what could not be read so far.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        indices, seeds = zip(*draws, strict=True)
        pixels = torch.from_numpy(read_varied(self.dataset, indices, seeds))
        return pixels, dict(self.dataset.problems)


class _Sent(_Batches):
    """The same for a worker, which sends a few bytes and puts the pixels into `places`.

    Torch would send them through /dev/shm, which may be small, and wait for ever where it is full.
    It also loses a batch if its sending thread fails; that thread gets only bytes, which it cannot
    fail to send.
    """

    def __init__(self, dataset: Dataset, places: Pixels | None) -> None:
        super().__init__(dataset)
        self.places = places

    def __getitems__(self, draws: Any) -> Any:
        try:
            number, chosen = draws
            pixels, problems = super().__getitems__(chosen)
            sent = pixels.numpy()
            if self.places is not None and sent.shape == self.places.shape[1:]:
                place = number % len(self.places)
                self.places[place] = sent
                sent = place
            return pickle.dumps((sent, problems))
        except Exception as error:
            error.add_note(traceback.format_exc())
            try:
                return pickle.dumps(error)
            except Exception:  # Errors of a class defined inside a function cannot be pickled.
                return pickle.dumps(RuntimeError(traceback.format_exc()))

    def received(self, message: bytes) -> Batch:
        """The batch that a worker sent, in memory of the trainer's; raises the worker's error."""
        content = pickle.loads(message)
        if isinstance(content, Exception):
            raise content
        sent, problems = content
        if self.places is not None and isinstance(sent, int):
            sent = self.places[sent]
        pixels = torch.from_numpy(sent)
        own = torch.empty_like(pixels, pin_memory=torch.cuda.is_available())
        return own.copy_(pixels), problems


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Torch ends its workers by SIGTERM.
    for each in (signal.SIGINT, *stop_signals()):
        if each is not signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN)


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


def loader(run: Run, dataset: Dataset, process: int, processes: int, first: int) -> Iterator[Batch]:
    """Batches uint8 `[B, H, W, 3]` of this process from step `first` on.

    A step takes `accumulate` of them. `TrainingError` if a worker is gone.
    """
    draws = Draws(run, len(dataset), process, processes, first)
    workers = workers_of(run, processes)
    # Forked workers share what a data set keeps in memory; elsewhere than on Linux it is not safe.
    fork = workers and sys.platform == "linux"
    packed: _Batches = _Batches(dataset)
    try:
        if workers:
            # Without locks between processes torch would end in a traceback.
            multiprocessing.Lock()
            packed = _Sent(dataset, _places(run, workers) if fork else None)
        stream = iter(
            DataLoader(
                packed,
                batch_sampler=_Numbered(draws) if workers else draws,
                collate_fn=_as_is,
                num_workers=workers,
                prefetch_factor=_AHEAD if workers else None,
                multiprocessing_context="fork" if fork else None,
                worker_init_fn=_leave_signals_to_the_trainer,
                pin_memory=torch.cuda.is_available() and not workers,
            )
        )
    except (ImportError, OSError) as error:
        raise TrainingError(f"workers cannot be started: {error}; give --workers 0") from error
    return map(packed.received, _told(stream)) if isinstance(packed, _Sent) else stream


def _places(run: Run, workers: int) -> Pixels:
    """Memory that forked workers share, for the batches under way and the one that was just sent.

    As in `genkit.kept`, it is no file, so that only the machine's memory limits it.
    """
    shape = (_AHEAD * workers + 1, run.batch_size, run.resolution, run.resolution, 3)
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=np.uint8).reshape(shape)


def _told(stream: Iterator[Any]) -> Iterator[Any]:
    """The messages of the workers; `TrainingError` if a worker has died.

    Torch says so whenever that happens, and then in the middle of a step. Here it says so while a
    batch is waited for, when every step before is a whole one and can be saved.
    """
    waiting = False

    def tell(*what: Any) -> None:
        if waiting and callable(torchs):
            torchs(*what)

    may_handle = threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    torchs = signal.getsignal(signal.SIGCHLD) if may_handle else None
    if may_handle:
        signal.signal(signal.SIGCHLD, tell)
    try:
        while True:
            try:
                waiting = True
                tell(0, None)  # A worker may have died since the last batch.
                batch = next(stream, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise TrainingError(
                    f"a process that prepares images is gone ({str(error).split('. ')[0]}); where "
                    "memory runs short, the system ends some: give fewer --workers or a lower "
                    "--data.cache, and continue with --resume"
                ) from error
            finally:
                waiting = False
            if batch is None:
                return
            yield batch
    finally:
        if may_handle:
            signal.signal(signal.SIGCHLD, torchs)
