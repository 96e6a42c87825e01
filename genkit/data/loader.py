"""The stream of training batches, prepared in this process or by workers."""

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

# The most workers that are chosen unasked.
_MOST_WORKERS = 8


def workers_of(run: TokenizerRun, processes: int) -> int:
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


class _Numbered(Sampler[Any]):
    """DrawSampler, each batch with its number."""

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

    A step takes `accumulate` of them. `TrainingError` if a worker is gone.
    """
    draws = DrawSampler(run, len(dataset), process, processes, first)
    workers = workers_of(run, processes)
    # Forked workers share what a data set keeps in memory; elsewhere than on Linux it is not safe.
    fork = workers and sys.platform == "linux"
    packed: Batches = Batches(dataset)
    try:
        if workers:
            # Without locks between processes torch would end in a traceback.
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
