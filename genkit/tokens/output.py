"""Output that is written in parts, so that a command that was killed can be resumed.

A folder of parts holds `unfinished.json`, the plan of the output, until all parts exist. Processes
share the parts by number and need no other contact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genkit.devices import launched
from genkit.errors import GenkitError
from genkit.files import check_place, write_text

UNFINISHED, _LOCK = "unfinished.json", ".lock"
_WAIT = 0.2


class Output:
    """A folder of parts, or a single file that is joined from one beside it."""

    def __init__(self, out: Path, whole: bool) -> None:
        """`whole` says that `out` is a single file."""
        self.out, self.whole = out, whole
        self.folder = out.with_name(f"{out.name}.unfinished") if whole else out
        self.process, self.processes = launched()

    def check(self) -> None:
        """`GenkitError` if the output exists and is not unfinished, or cannot be written."""
        check_place(self.out if self.whole else self.out / UNFINISHED)
        if self.process == 0 and self._finished():
            what = "exists" if self.whole else "is a folder with files"
            raise GenkitError(f"'{self.out}' {what} already: name another --out, or remove it")

    def _finished(self) -> bool:
        """Whether something is there that is not the beginning of an output."""
        if self.whole:
            return self.out.exists() and not self.folder.exists()
        return not (self.out / UNFINISHED).is_file() and any(self._visible())

    def _visible(self) -> Iterator[Path]:
        """The files in the folder, except the lock and files that were being written."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if not path.name.startswith("."):
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
        lock = FileLock(self.folder / _LOCK, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise GenkitError(f"another process is writing '{self.out}'") from None
        except (OSError, NotImplementedError):  # Some network file systems have no locks.
            pass
        try:
            if self.whole and self.out.exists():  # A start that was killed while it cleaned up.
                self.clear()
                yield False
            else:
                self._agree(plan)
                yield True
        finally:
            lock.release()

    def _joined(self, plan: Mapping[str, Any]) -> bool:
        """Wait for the plan of the first process; False if it has finished the output already."""
        while not (self.folder / UNFINISHED).is_file():
            if self._finished():
                return False
            time.sleep(_WAIT)
        self._agree(plan)
        return True

    def _agree(self, plan: Mapping[str, Any]) -> None:
        path = self.folder / UNFINISHED
        if not path.exists():
            write_text(path, json.dumps(plan, indent=1) + "\n")
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GenkitError(f"'{path}' cannot be read: {error}") from error
        for name in {**before, **plan}:
            if before.get(name) != plan.get(name):
                raise GenkitError(
                    f"'{self.out}' was begun with another {name}, {_short(before.get(name))}, not "
                    f"{_short(plan.get(name))}: name another --out, or remove '{self.folder}' to "
                    "begin anew"
                )

    def own(self, parts: int) -> range:
        """The parts of this process."""
        return range(self.process, parts, self.processes)

    def wait(self, done: Callable[[], bool]) -> bool:
        """Wait for the parts of all processes; whether this process has to finish the output."""
        if self.process:
            return False
        while not done():
            time.sleep(_WAIT)
        return True

    def wait_for_first(self) -> None:
        """Wait until the first process has finished the output."""
        while not self._finished():
            time.sleep(_WAIT)

    def clear(self) -> None:
        """Remove what was needed only on the way, the plan last."""
        last = self.folder / UNFINISHED
        for path in [*self.folder.glob(".*"), *(self.folder.glob("[!.]*") if self.whole else [])]:
            if path != last:
                path.unlink(missing_ok=True)
        last.unlink(missing_ok=True)
        if self.whole:
            self.folder.rmdir()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:50]}…"
