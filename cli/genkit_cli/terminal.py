"""The output streams of the command, and the environment variables that concern them."""

from __future__ import annotations

import codecs
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any, TextIO

# Replacements for characters that an encoding lacks. Any other character becomes "?".
_PLAIN = {"→": "->", "…": "...", "·": "-", "×": "x", "–": "-", "’": "'"}


def prepare() -> None:
    """Make stdout and stderr accept every character; set the environment for torch and rich.

    Call it before anything is written and before torch or rich is imported.
    """
    codecs.register_error("genkit", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="genkit")
    for name in ("COLUMNS", "LINES"):
        # Some containers set 0 for an unknown size.
        if os.environ.get(name, "").isdigit() and int(os.environ[name]) == 0:
            del os.environ[name]
    # Threads that spin while they wait can make a shared machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def give_up(stream: TextIO) -> None:
    """Discard the buffered text of `stream` and all text written to it from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Output:
    """A stream that discards its text once its reader is gone or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text`; report a failure once on stderr."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream; report a failure once on stderr."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        give_up(self.stream)
        text = f"The output cannot be written ({error.strerror}); training continues without it."
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            give_up(sys.stderr)


def counted(number: int, thing: str) -> str:
    """A number of things, such as "1 file" or "2 files"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def left_out(number: int) -> str:
    """A sentence's beginning on a number of unreadable files."""
    return f"{counted(number, 'file')} cannot be read and {'is' if number == 1 else 'are'} left out"


def typed(path: Path | str) -> str:
    """A path quoted for a shell, with a prefix if it would read as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in letters), error.end
