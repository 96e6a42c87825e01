"""Launches one command in several processes on this machine, like `accelerate launch`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

import click

from genkit.errors import TrainingError
from genkit.signals import stop_signals
from genkit.training.meeting import LAUNCHED, meeting
from genkit_cli.main import ARGS, CTRL_C

# Exit code of a process that failed because another process is gone.
LOST_CONTACT = 75
# Exit code of an interrupted process that has saved, if the variable `LAUNCHED` is set.
INTERRUPTED = 74
_PATIENCE = 10.0


def launch(args: Sequence[str], processes: int) -> int:
    """Run `genkit ARGS`, without their `--processes`, in `processes` processes.

    Returns the exit code. If one process fails, the others are stopped.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    common = {**meeting(processes), LAUNCHED: str(os.getpid())}
    # Without -P, Python would import modules from the current directory.
    command = [sys.executable, "-P", "-m", "genkit_cli", *_without_processes(args)]
    # Hold error messages back until the first process to fail is known.
    with contextlib.ExitStack() as stack:
        messages = [
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            for _ in range(processes)
        ]
        children = []
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **common, **ranks}
            children.append(subprocess.Popen(command, env=environment, stderr=messages[rank]))
        failed, code = _wait(children)
        if failed is not None:
            text = _read(messages[failed])
            if code < 0:
                text = (
                    f"Error: process {failed} of {processes} was ended by signal {-code}; "
                    f"all were stopped.\n{text}"
                ).strip()
            print(
                text or f"Error: process {failed} of {processes} failed; all were stopped.",
                file=sys.stderr,
            )
        elif warnings := _read(messages[0]):
            print(warnings, file=sys.stderr)
        return 1 if code < 0 else code


def is_launched(processes: int) -> bool:
    """Whether this process is already one of `processes` launched processes.

    Raises `TrainingError` if the environment names another number.
    """
    there = os.environ.get("WORLD_SIZE")
    if there is not None and there.strip() != str(processes):
        raise TrainingError(
            f"this command needs {processes} processes, but a launcher set WORLD_SIZE to '{there}' "
            f"in the environment: unset WORLD_SIZE, or launch {processes} processes"
        )
    return there is not None


def share(processes: int) -> None:
    """Run this command in `processes` processes and exit, unless this is one of them."""
    if processes > 1 and not is_launched(processes):
        sys.exit(launch(click.get_current_context().meta[ARGS], processes))
    stop_with_launcher()


def stop_with_launcher() -> None:
    """In a launched process, stop as after SIGTERM when its launcher is gone."""
    if LAUNCHED not in os.environ:
        return
    launcher = int(os.environ[LAUNCHED])

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _without_processes(args: Sequence[str]) -> list[str]:
    result: list[str] = []
    skip = False
    for arg in args:
        if skip or arg.startswith("--processes="):
            skip = False
        elif arg == "--processes":
            skip = True
        else:
            result.append(arg)
    return result


def _read(messages: IO[str]) -> str:
    messages.seek(0)
    return messages.read().strip()


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> tuple[int | None, int]:
    """The first process that failed, if any, and the exit code. After a failure, stop the rest."""

    def pass_on(*_: object) -> None:
        for child in children:
            child.terminate()

    # Ctrl-C reaches the children directly: they save and stop together. Pass other signals on.
    typed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: typed.append(number))
    for each in stop_signals():
        signal.signal(each, pass_on)
    lost = None
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        failed = {
            rank: child.returncode
            for rank, child in enumerate(children)
            if child.poll() not in (None, 0, INTERRUPTED)
        }
        # A process that lost contact fails because of another process. Wait a moment for that
        # one to end, so that its error is the one reported.
        first = next((rank for rank, code in failed.items() if code != LOST_CONTACT), None)
        lost = lost or (time.monotonic() if failed else None)
        if first is None and (lost is None or time.monotonic() - lost < _PATIENCE):
            continue
        deadline = time.monotonic() + _PATIENCE
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in children:
            child.kill()
            child.wait()
        rank = first if first is not None else next(iter(failed))
        return rank, children[rank].returncode
    codes = [child.returncode for child in children]
    expected = (0, INTERRUPTED, LOST_CONTACT)
    worst = next((rank for rank, code in enumerate(codes) if code not in expected), None)
    if worst is not None:
        return worst, codes[worst]
    return None, (CTRL_C if typed else 1) if any(codes) else 0
