"""A cache of images in memory, shared by this process and its forks."""

from __future__ import annotations

import logging
import math
import mmap
import multiprocessing
import threading
from typing import Any

import numpy as np

from genkit.images import Pixels

_log = logging.getLogger(__name__)


class ImageCache:
    """A cache of images `[H, W, C]` by number, below `count`, in at most `room` bytes.

    They are uint8, or uint16 if `deep`.

    Forked processes share it, so that each image is decoded once. Images are never evicted: with
    draws in random order, all are equally likely to be needed next. Memory is allocated on first
    use, and nothing is written to disk. A process that receives the cache by pickling starts with
    an empty one. On a system without locks between processes, for example without a writable
    /dev/shm, each process has its own cache.

    Raises `OSError` or `OverflowError` if the machine does not have `room` bytes.
    """

    def __init__(self, count: int, room: int, deep: bool = False) -> None:
        self.count, self.room, self.deep = count, room, deep
        _log.debug("up to %.1f MB of decoded images stay in memory", room / 1e6)
        self._lock: Any
        try:
            self._lock, take = multiprocessing.Lock(), _shared
        except (ImportError, OSError):
            self._lock, take = threading.Lock(), _own
        # Each image's offset and shape. The last row holds the offset of the next image.
        places = take(8 * 4 * (count + 1))
        self._places = np.frombuffer(places, dtype=np.int64).reshape(count + 1, 4)
        self._memory = np.frombuffer(take(max(1, room)), dtype=np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self.count, self.room, self.deep)

    def get(self, number: int) -> Pixels | None:
        """The cached image with this number, read-only; None if it is not cached."""
        with self._lock:
            start, *shape = self._places[number].tolist()
        if not shape[0]:
            return None
        dtype = np.dtype(np.uint16 if self.deep else np.uint8)
        end = start + math.prod(shape) * dtype.itemsize
        image: Pixels = self._memory[start:end].view(dtype).reshape(shape)
        image.flags.writeable = False
        return image

    def put(self, number: int, image: Pixels) -> None:
        """Cache an image, unless its number is cached or the cache is full."""
        with self._lock:
            start = int(self._places[self.count, 0])
            if self._places[number, 1] or start + image.nbytes > self.room:
                return
            self._memory[start : start + image.nbytes] = (
                np.ascontiguousarray(image).reshape(-1).view(np.uint8)
            )
            self._places[number] = start, *image.shape
            self._places[self.count, 0] = start + image.nbytes


def _shared(size: int) -> mmap.mmap:
    """Memory that forked processes share."""
    return mmap.mmap(-1, size)


def _own(size: int) -> mmap.mmap:
    """Memory that a forked process copies on write."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
