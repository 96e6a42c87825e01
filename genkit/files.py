"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genkit.errors import GenkitError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed to disk and put in its place at the end.

    On failure `path` stays as it was.
    """
    if not path.name:
        raise GenkitError("a file to write needs a name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        readable_as_usual(temporary)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise GenkitError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def readable_as_usual(path: Path) -> None:
    """Give a file the mode of any new one: what writes safetensors gives it to its owner alone."""
    beside = path.with_name(f"{path.name}.mode")
    beside.touch()
    path.chmod(beside.stat().st_mode)
    beside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file, and no pipe or device, which would be read for ever."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib's raises on names that are too long)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder, whatever text it is."""
    return os.path.isdir(path)  # noqa: PTH112 (as above)
