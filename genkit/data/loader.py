"""The stream of training batches, prepared in this process or by worker processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from genkit.data.order import Draw, DrawSampler
from genkit.data.reading import read_varied
from genkit.data.workers import (
    AHEAD,
    Batch,
    Batches,
    Read,
    SharedBatches,
    ignore_signals,
    shared_memory,
    watched,
)
from genkit.devices import local_processes
from genkit.errors import TrainingError
from genkit.images import Pixels, is_deep
from genkit.interfaces import Split
from genkit.run.options import TokenizerRun

_log = logging.getLogger(__name__)
# The maximum number of workers with --workers -1.
_MOST_WORKERS = 16


def workers_of(wanted: int, processes: int) -> int:
    """The number of workers of a process on this machine; -1 chooses it.

    On a machine with a CUDA GPU a process gets one worker per spare core, since images are read
    while the GPU computes. Elsewhere it gets none: the model needs all cores, and preparing images
    takes only a small part of their time.
    """
    if wanted >= 0:
        return wanted
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    spare = cores // local_processes(processes) - 1
    return max(0, min(spare, _MOST_WORKERS)) if torch.cuda.is_available() else 0


class _Numbered(Sampler[Any]):
    """A sampler's batches, each with its number."""

    def __init__(self, chosen: Sampler[Any]) -> None:
        self.chosen = chosen

    def __iter__(self) -> Iterator[Any]:
        return enumerate(self.chosen)


def _as_is(batch: Any) -> Any:
    return batch


class _Varied:
    """Reads training images, with the images found unreadable since the last batch."""

    def __init__(self, dataset: Split) -> None:
        self.dataset, self._reported = dataset, len(dataset.problems)

    def __call__(self, draws: Sequence[Draw]) -> tuple[Pixels, dict[str, str]]:
        indices, seeds = zip(*draws, strict=True)
        pixels = read_varied(self.dataset, indices, seeds)
        new = dict(islice(self.dataset.problems.items(), self._reported, None))
        self._reported += len(new)
        return pixels, new


def loader(
    run: TokenizerRun, dataset: Split, process: int, processes: int, first: int
) -> Iterator[Batch]:
    """Batches `[B, H, W, channels]` of this process from step `first` on.

    A step takes `accumulate` batches. Raises `TrainingError` if a worker died.
    """
    draws = DrawSampler(run, len(dataset), process, processes, first)
    shape = run.batch_size, *run.size, dataset.channels
    workers = workers_of(run.workers, processes)
    _log.debug("%d worker processes read the images", workers)
    return stream(_Varied(dataset), draws, shape, workers, is_deep(dataset))


def stream(
    read: Read,
    chosen: Sampler[Any],
    shape: tuple[int, int, int, int],
    workers: int,
    deep: bool = False,
) -> Iterator[Batch]:
    """The batches that `read` returns for each choice of a sampler, prepared by workers if any.

    `shape` is that of a full batch `[B, H, W, channels]`; `deep` pixels are uint16. Raises
    `TrainingError` if a worker died.
    """
    # Forked workers share a data set's cache. Forking is safe on Linux only.
    fork = workers and sys.platform == "linux"
    packed: Batches = Batches(read)
    try:
        if workers:
            # This raises OSError without locks between processes, where torch would fail later.
            multiprocessing.Lock()
            packed = SharedBatches(read, shared_memory(shape, workers, deep) if fork else None)
        batches = iter(
            DataLoader(
                packed,
                batch_sampler=_Numbered(chosen) if workers else chosen,
                collate_fn=_as_is,
                num_workers=workers,
                prefetch_factor=AHEAD if workers else None,
                multiprocessing_context="fork" if fork else None,
                worker_init_fn=ignore_signals,
                pin_memory=torch.cuda.is_available() and not workers,
            )
        )
    except (ImportError, OSError) as error:
        raise TrainingError(f"workers cannot be started: {error}; give --workers 0") from error
    return map(packed.received, watched(batches)) if isinstance(packed, SharedBatches) else batches
