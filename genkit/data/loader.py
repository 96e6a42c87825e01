"""The stream of training batches, prepared in this process or by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from genkit.data.order import DrawSampler
from genkit.data.workers import (
    AHEAD,
    Batch,
    Batches,
    SharedBatches,
    ignore_signals,
    shared_memory,
    watched,
)
from genkit.errors import TrainingError
from genkit.interfaces import Split
from genkit.run.options import TokenizerRun

# The maximum number of workers with --workers -1.
_MOST_WORKERS = 8


def workers_of(run: TokenizerRun, processes: int) -> int:
    """The number of workers of a training process on this machine.

    By default, training on a GPU uses one worker per spare core of the process. Training on a CPU
    uses none: it needs all cores, and preparing images takes only a small part of its time.
    """
    if run.workers >= 0:
        return run.workers
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    # LOCAL_WORLD_SIZE is the launcher's number of processes on this machine.
    spare = cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes)) - 1
    # A single worker is no faster than none.
    return min(spare, _MOST_WORKERS) if torch.cuda.is_available() and spare > 1 else 0


class _Numbered(Sampler[Any]):
    """`DrawSampler` with a number for each batch."""

    def __init__(self, draws: DrawSampler) -> None:
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __iter__(self) -> Iterator[Any]:
        return enumerate(self.draws)


def _as_is(batch: Any) -> Any:
    return batch


def loader(
    run: TokenizerRun, dataset: Split, process: int, processes: int, first: int
) -> Iterator[Batch]:
    """Batches uint8 `[B, H, W, channels]` of this process from step `first` on.

    A step takes `accumulate` batches. Raises `TrainingError` if a worker died.
    """
    draws = DrawSampler(run, len(dataset), process, processes, first)
    workers = workers_of(run, processes)
    # Forked workers share a data set's cache. Forking is safe on Linux only.
    fork = workers and sys.platform == "linux"
    packed: Batches = Batches(dataset)
    try:
        if workers:
            # This raises OSError without locks between processes, where torch would fail later.
            multiprocessing.Lock()
            shape = run.batch_size, *run.size, dataset.channels
            packed = SharedBatches(dataset, shared_memory(shape, workers) if fork else None)
        stream = iter(
            DataLoader(
                packed,
                batch_sampler=_Numbered(draws) if workers else draws,
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
    return map(packed.received, watched(stream)) if isinstance(packed, SharedBatches) else stream
