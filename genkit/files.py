"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from genkit.errors import GenkitError

# The files of a run directory that commands look for: its options, the model alone, and beside a
# prior its tokenizer.
CONFIG, MODEL, TOKENIZER = "config.toml", "model.safetensors", "tokenizer.safetensors"
REPORT = "report.html"
# Control characters, ends of lines, and marks that change the direction of text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def printable(text: str) -> str:
    """A file's name, or a message with one, as one line that can be written and shown anywhere."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, flushed to disk and put in its place at the end.

    On failure `path` stays as it was. Without `lasting` nothing is flushed: the file outlives a
    kill, but perhaps not a power failure.
    """
    if not path.name:
        raise GenkitError("a file to write needs a name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if lasting:
            readable_as_usual(temporary)
            flush(temporary)
        temporary.replace(path)
        if lasting:
            flush(path.parent)
    except OSError as error:
        raise GenkitError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def readable_as_usual(path: Path) -> None:
    """Give a file the usual mode of new files; safetensors makes its files private."""
    beside = path.with_name(f"{path.name}.mode")
    beside.touch()
    path.chmod(beside.stat().st_mode)
    beside.unlink()


def check_place(path: Path) -> None:
    """`GenkitError` if no file can be written at `path`.

    A command that computes for long asks this first.
    """
    if is_folder(path):
        raise GenkitError(f"'{path}' is a folder: name a file to write")
    _check_nearest(path, path.absolute().parents)


def check_folder(path: Path) -> None:
    """`GenkitError` if no files can be written into a folder, which need not exist yet."""
    _check_nearest(path, (path, *path.absolute().parents))


def _check_nearest(path: Path, folders: Sequence[Path]) -> None:
    # The nearest existing folder; the folders below it will be created.
    folder = next(folder for folder in folders if _mode(folder))
    if not is_folder(folder):
        raise GenkitError(f"'{path}' cannot be written: '{folder}' is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise GenkitError(f"'{path}' cannot be written: '{folder}' is read-only")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    import hashlib  # Imported here, to keep start-up fast.

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` replaced by the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # There is no such user.
        return Path(path)


def at_home(text: str) -> str:
    """`text` with a leading `~` replaced by the home folder, and otherwise unchanged.

    Unlike a path, the text may be an address or empty.
    """
    return os.path.expanduser(text)  # noqa: PTH111 (pathlib would rewrite what is not a path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a regular file; reading a pipe or a device may never end."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: str | os.PathLike[str]) -> int:
    """The mode bits of `path`; 0 if it does not exist or is not a valid name."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0
