"""The signals that stop a run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def stop_signals() -> list[signal.Signals]:
    """The signals after which a run finishes its step, saves and stops, in addition to Ctrl-C.

    Schedulers send some of them ahead of their time, and a terminal that closes sends SIGHUP, which
    `nohup` has ignored. Windows has SIGTERM alone.
    """
    names = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]
