"""Images kept in memory, for this process and those that are forked from it."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import threading
from typing import Any

import numpy as np

from genkit.images import Pixels


class ImageCache:
    """Images `[H, W, C]` under numbers below `count`, in at most `room` bytes.

    Forked processes share them: what one decoded, none decodes again. What comes first stays, since
    images that are drawn in random order are all as likely to be asked for next. Nothing is taken
    from the machine before it is needed, and nothing lies on a disk. A process that gets this in
    another way than by a fork starts with an empty one. Where the system has no locks between
    processes, as without a writable /dev/shm, each process keeps its own.

    `OSError` or `OverflowError` if the machine has no such room.
    """

    def __init__(self, count: int, room: int) -> None:
        self.count, self.room = count, room
        self._lock: Any
        try:
            self._lock, take = multiprocessing.Lock(), _shared
        except (ImportError, OSError):
            self._lock, take = threading.Lock(), _own
        # The beginning and the shape of each; in the last row, where the next one may begin.
        places = take(8 * 4 * (count + 1))
        self._places = np.frombuffer(places, dtype=np.int64).reshape(count + 1, 4)
        self._memory: Pixels = np.frombuffer(take(max(1, room)), dtype=np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self.count, self.room)

    def get(self, number: int) -> Pixels | None:
        """The image that is kept under a number, if one is; it cannot be written to."""
        with self._lock:
            start, *shape = self._places[number].tolist()
        if not shape[0]:
            return None
        image = self._memory[start : start + math.prod(shape)].reshape(shape)
        image.flags.writeable = False
        return image

    def put(self, number: int, image: Pixels) -> None:
        """Keep an image if there is room for it and none is kept under its number."""
        with self._lock:
            start = int(self._places[self.count, 0])
            if self._places[number, 1] or start + image.nbytes > self.room:
                return
            self._memory[start : start + image.nbytes] = image.reshape(-1)
            self._places[number] = start, *image.shape
            self._places[self.count, 0] = start + image.nbytes


def _shared(size: int) -> mmap.mmap:
    """Memory that forked processes share."""
    return mmap.mmap(-1, size)


def _own(size: int) -> mmap.mmap:
    """Memory that a forked process copies."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
