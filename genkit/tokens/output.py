"""Output that is written in parts, so that a command that was killed can be resumed.

A folder of parts holds `unfinished.json`, the plan of the output, until all parts exist. Processes
share the parts by number and need no other contact.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genkit.devices import launched
from genkit.errors import GenkitError
from genkit.files import check_place, write_text
from genkit.locking import LOCK, locked
from genkit.tokens import UNFINISHED

# Removed at the end: the lock, incomplete files, and the parts of a single file.
_log = logging.getLogger(__name__)
_PASSING = re.compile(r"\.lock|\..+\.\d+\.tmp(\.mode)?")
_PART = re.compile(r"\d{5,}\.safetensors")
_WAIT = 0.2


class Output:
    """A folder of parts, or a single file that is joined from one beside it."""

    def __init__(self, out: Path, whole: bool, around: Path | None = None) -> None:
        """`whole` says that `out` is a single file. `around` is a folder of all that is written."""
        self.out, self.whole = out, whole
        self.folder = out.with_name(f"{out.name}.unfinished") if whole else out
        self.around = around or self.folder
        self.process, self.processes = launched()

    def check(self) -> None:
        """`GenkitError` if the output exists and is not unfinished, or cannot be written."""
        try:
            if self.out.exists() and self.whole == self.out.is_dir():
                kind = "a folder: name a file" if self.whole else "a file: name a folder"
                raise GenkitError(f"'{self.out}' is {kind}")
            check_place(self.folder / UNFINISHED)
            if self.whole:
                self._check_folder()
            if self.process == 0 and self._finished():
                what = "exists" if self.whole else "is a folder with files"
                raise GenkitError(f"'{self.out}' {what} already: name another --out, or remove it")
        except (OSError, ValueError) as error:  # For example a name that is too long.
            reason = getattr(error, "strerror", None) or error
            raise GenkitError(f"'{self.out}' cannot be written: {reason}") from error

    def _check_folder(self) -> None:
        """Refuse a folder in the place of the parts that holds anything else."""
        if not self._is_begun() and self.folder.exists():
            if any(self._others()):
                raise GenkitError(f"'{self.folder}' is in the way: remove it")
            with suppress(OSError):  # A start that was killed just before its end.
                self.folder.rmdir()

    def _is_begun(self) -> bool:
        return (self.folder / UNFINISHED).is_file()

    def _finished(self) -> bool:
        """Whether something exists that is not the beginning of an output."""
        # In this order: the plan is written before any other file, and removed last.
        something = self.out.exists() if self.whole else any(self._others())
        return something and not self._is_begun()

    def _others(self) -> Iterator[Path]:
        """The files in the folder, except the lock and incomplete files."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if not _PASSING.fullmatch(path.name):
                    yield path

    @contextmanager
    def claimed(self, plan: Mapping[str, Any]) -> Iterator[bool]:
        """Keep other commands out while parts are made; the value is whether any are missing.

        `GenkitError` if an earlier start had another plan.
        """
        if self.process:
            yield self._joined(plan)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GenkitError(f"'{self.out}' cannot be written: {error.strerror}") from error
        try:
            with locked(self.folder, GenkitError(f"another process is writing '{self.out}'")):
                if not self._is_begun():
                    write_text(self.folder / UNFINISHED, json.dumps(plan, indent=1) + "\n")
                self._agree(plan)
                _log.debug("'%s' is being written", self.folder)
                if self.whole and self.out.exists():  # A start that was killed as it cleaned up.
                    self.clear()
                    yield False
                else:
                    yield True
        finally:
            if not self._is_begun():
                self._remove_lock()

    def _joined(self, plan: Mapping[str, Any]) -> bool:
        """Wait for the plan of the first process; False if it has finished the output already."""
        while not (self.whole and self.out.exists()):
            with suppress(FileNotFoundError):
                self._agree(plan)
                return True
            if self._finished():
                break
            time.sleep(_WAIT)
        return False

    def _agree(self, plan: Mapping[str, Any]) -> None:
        path = self.folder / UNFINISHED
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise GenkitError(f"'{path}' cannot be read: {error}") from error
        for name in [name for name in {**plan, **before} if before.get(name) != plan.get(name)]:
            raise GenkitError(
                f"'{self.out}' was begun with {name} {_short(before.get(name))}, not "
                f"{_short(plan.get(name))}: name another --out, or remove '{self.around}' to "
                "begin anew"
            )

    def own(self, parts: int) -> range:
        """The parts of this process."""
        return range(self.process, parts, self.processes)

    def wait(self, parts: int, is_complete: Callable[[int], bool]) -> bool:
        """Wait for the parts of all processes; whether this process has to finish the output."""
        if self.process:
            return False
        for number in range(parts):
            while not is_complete(number):
                time.sleep(_WAIT)
        return True

    def wait_for_first(self) -> None:
        """Wait until the first process has finished the output."""
        while not self._finished():
            time.sleep(_WAIT)

    def clear(self) -> None:
        """Remove what was needed only on the way, the plan last."""
        for path in list(self.folder.iterdir()):
            passing = _PASSING.fullmatch(path.name) and path.name != LOCK
            if passing or (self.whole and _PART.fullmatch(path.name)):
                path.unlink(missing_ok=True)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _remove_lock(self) -> None:
        """Remove the lock, which Windows keeps while it is held, and an empty folder of parts."""
        with suppress(OSError):
            (self.folder / LOCK).unlink(missing_ok=True)
            if self.whole:
                self.folder.rmdir()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:50]}…"
