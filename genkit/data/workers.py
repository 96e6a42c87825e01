"""Worker processes that prepare batches of images."""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from genkit.errors import TrainingError
from genkit.images import Pixels
from genkit.signals import stop_signals

# Batches that each worker prepares in advance.
AHEAD = 2
# Pixels `[B, H, W, channels]`, and other facts about the images.
Batch = tuple[Tensor, Any]
# Reads the batch that its argument, one of a sampler's, chooses.
Read = Callable[[Any], tuple[Pixels, Any]]


class Batches(TorchDataset[Batch]):
    """The batches of `read` in the form that `DataLoader` needs."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitems__(self, chosen: Any) -> Any:
        pixels, about = self.read(chosen)
        return torch.from_numpy(pixels), about


class SharedBatches(Batches):
    """Batches for a worker, which puts the pixels into the shared memory `places`.

    The worker sends a few bytes. Torch would send the pixels through /dev/shm, which may be small,
    and hang if it is full. It also loses a batch if its sending thread fails, so that thread only
    gets bytes, which it can always send.
    """

    def __init__(self, read: Read, places: Pixels | None) -> None:
        super().__init__(read)
        self.places = places

    def __getitems__(self, numbered: Any) -> Any:
        try:
            number, chosen = numbered
            pixels, about = super().__getitems__(chosen)
            sent = pixels.numpy()
            if self.places is not None and sent.shape == self.places.shape[1:]:
                place = number % len(self.places)
                self.places[place] = sent
                sent = place
            return pickle.dumps((sent, about))
        except Exception as error:
            error.add_note(traceback.format_exc())
            try:
                return pickle.dumps(error)
            except Exception:  # An error of a class defined inside a function cannot be pickled.
                return pickle.dumps(RuntimeError(traceback.format_exc()))

    def received(self, message: bytes) -> Batch:
        """The batch that a worker sent, copied out of shared memory; raises the worker's error."""
        content = pickle.loads(message)
        if isinstance(content, Exception):
            raise content
        sent, about = content
        if self.places is not None and isinstance(sent, int):
            sent = self.places[sent]
        pixels = torch.from_numpy(sent)
        own = torch.empty_like(pixels, pin_memory=torch.cuda.is_available())
        return own.copy_(pixels), about


def ignore_signals(worker: int) -> None:
    """Ignore stop signals, which the main process handles. PyTorch ends workers by SIGTERM."""
    for each in (signal.SIGINT, *stop_signals()):
        if each is not signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN)


def shared_memory(batch: tuple[int, ...], workers: int, deep: bool) -> Pixels:
    """Memory shared by forked workers, for the batches in flight and the one in use.

    Like `genkit.data.cache` it is not backed by a file, so only the machine's memory limits it.
    """
    shape = (AHEAD * workers + 1, *batch)
    dtype = np.dtype(np.uint16 if deep else np.uint8)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(memory, dtype).reshape(shape)


def watched(stream: Iterator[Any]) -> Iterator[Any]:
    """The messages of the workers. Raises `TrainingError` if a worker died.

    Torch raises its error at any moment, even in the middle of a step. This function lets it raise
    only while waiting for a batch, when all earlier steps are complete and can be saved.
    """
    waiting = False

    def check_workers(*args: Any) -> None:
        if waiting and callable(torch_handler):
            torch_handler(*args)

    may_handle = threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    torch_handler = signal.getsignal(signal.SIGCHLD) if may_handle else None
    if may_handle:
        signal.signal(signal.SIGCHLD, check_workers)
    try:
        while True:
            try:
                waiting = True
                check_workers(0, None)  # A worker may have died since the last batch.
                batch = next(stream, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise TrainingError(
                    f"a process that prepares images died ({str(error).split('. ')[0]}), possibly "
                    "because memory ran out: use fewer --workers or a lower --data.cache, and "
                    "continue (train with --resume, encode with the same command)"
                ) from error
            finally:
                waiting = False
            if batch is None:
                return
            yield batch
    finally:
        if may_handle:
            signal.signal(signal.SIGCHLD, torch_handler)


def _step_back() -> None:
    """Leave the cores to the threads of the model, which wait for each other at every layer."""
    if sys.platform == "linux":  # There a thread has a priority of its own.
        os.nice(10)


def in_background(stream: Iterator[Any]) -> Iterator[Any]:
    """The batches of a stream, prepared ahead by a thread."""
    with ThreadPoolExecutor(1, initializer=_step_back) as pool:
        waiting = deque(pool.submit(next, stream, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, stream, None))
            yield batch
