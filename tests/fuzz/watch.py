"""Watches the side effects of a case: files, network, programs and code, time and memory."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

# A name of an optimizer imports timm, which takes seconds and makes a cache folder, once.
importlib.import_module("timm.optim")
ROOT = Path(__file__).parent.parent.parent
# Places that any case may read: code, and files that describe the machine.
_PYTHON = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())
LIBRARIES = (
    *_PYTHON,
    *(str(ROOT / part) for part in ("genkit", "cli", "plugins", "examples", "tests")),
    "/proc",
    "/sys",
    "/usr",
)
_NEVER = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "pickle.find_class",
)
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Watch:
    """The forbidden events of the running case, and the places that it may read and write."""

    def __init__(
        self, reads: Sequence[Path], writes: Sequence[Path], never: Sequence[str] = ()
    ) -> None:
        self.never = (*_NEVER, *never)
        self.writes = tuple(map(str, writes))
        self.reads = (*LIBRARIES, *map(str, reads), *self.writes)
        self.broken: list[str] = []

    def event(self, event: str, args: Any) -> None:
        """Record an event if it is forbidden."""
        if event in self.never:
            self.broken.append(f"{event} {args!r:.300}")
        elif event == "open" and isinstance(args[0], str | bytes):
            mode, flags = str(args[1] or ""), int(args[2] or 0)
            written = flags & _WRITES or set("wax+") & set(mode)
            self._place(event, args[0], self.writes if written else self.reads)
        elif event in _CHANGES:
            for path in args:
                if isinstance(path, str | bytes):
                    self._place(event, path, self.writes)
        elif event == "exec" and isinstance(args[0], CodeType):
            self._code(args[0].co_filename)

    def _place(self, event: str, path: str | bytes, allowed: Sequence[str]) -> None:
        place = os.path.abspath(os.fsdecode(path))
        # Python keeps the bytecode of modules that are imported late.
        if not place.startswith(tuple(allowed)) and "__pycache__" not in place:
            self.broken.append(f"{event} {path!r:.300}")

    def _code(self, file: str) -> None:
        frame: FrameType | None = sys._getframe(3)
        by = frame.f_code.co_filename if frame else ""
        # Modules imported late may build dataclasses and named tuples, whose code has no file.
        known = by.startswith((*_PYTHON, "<frozen")) if file[:1] == "<" else False
        if not known and not file.startswith((*LIBRARIES, "<frozen")):
            self.broken.append(f"exec of {file} by {by}")


_current: list[Watch] = []
_installed: list[bool] = []


def _hook(event: str, args: Any) -> None:
    if _current:
        watch = _current[-1]
        if event in watch.never or event in _CHANGES or event in ("open", "exec"):
            watch.event(event, args)


class TooLong(BaseException):
    """A case exceeded its time. A BaseException, so that the code under test does not catch it."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _peak(anew: bool = False) -> float:
    """The process's peak memory in MB; `anew` resets the peak first."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


@contextmanager
def recorded(
    reads: Sequence[Path] = (), writes: Sequence[Path] = (), never: Sequence[str] = ()
) -> Iterator[Watch]:
    """Record forbidden events, and those in `never`, while the block runs."""
    if not _installed:  # An audit hook cannot be removed.
        sys.addaudithook(_hook)
        _installed.append(True)
    watch = Watch(reads, writes, never)
    _current.append(watch)
    try:
        yield watch
    finally:
        _current.pop()


@contextmanager
def watched(
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
    seconds: float = 20,
    megabytes: int = 768,
    never: Sequence[str] = (),
) -> Iterator[None]:
    """Fail if the case causes a forbidden event or exceeds its time or memory."""
    before = _peak(anew=True)
    handler = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with recorded(reads, writes, never) as watch:
        try:
            yield
        except TooLong:
            watch.broken.append(f"took over {seconds} s")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
    grown = _peak() - before
    if grown > megabytes:
        watch.broken.append(f"took {grown:.0f} MB")
    assert not watch.broken, "\n".join(watch.broken)


def explore(cases: SearchStrategy[Any], check: Callable[[Any], None], count: int) -> None:
    """Check `count` cases, the same in every run; a failing one is shrunk and shown."""
    done = 0

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def every(case: Any) -> None:
        nonlocal done
        done += 1
        check(case)

    every()
    assert done >= count, f"{done} cases of {count}"
