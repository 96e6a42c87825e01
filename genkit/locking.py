"""A lock file that keeps other processes out of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from genkit.errors import GenkitError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, held: GenkitError) -> Iterator[None]:
    """Lock a folder; raises `held` if another process has locked it.

    The system frees the lock when the process ends in any way; the empty file `.lock` stays. A
    folder on a file system without locks, as some network file systems are, is not locked.
    """
    # In place of a missing lock a soft one would outlive a process that is killed.
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise held from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process has locked a folder."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with locked(folder, GenkitError()):
            return False
    except GenkitError:
        return True
