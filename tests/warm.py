"""`genkit` in processes forked from one that has imported PyTorch, which saves two seconds each."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload(["torch", "numpy", "PIL.Image", "click", "rich.console"])


def warm_command(
    args: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `genkit ARGS` in such a process. Environment variables take effect where genkit or a
    library imported by it reads them.
    """
    streams = [cwd / f".{name}-{os.getpid()}" for name in ("stdout", "stderr")]
    process = _CONTEXT.Process(
        target=_run, args=(list(args), cwd, dict(environment), *map(str, streams))
    )
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(list(args), timeout)
    texts = [stream.read_text(encoding="utf-8") for stream in streams]
    for stream in streams:
        stream.unlink()
    return subprocess.CompletedProcess(list(args), process.exitcode or 0, *texts)


def _run(args: list[str], cwd: Path, environment: dict[str, str], out: str, error: str) -> None:
    for number, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["genkit", *args]
    try:
        runpy.run_module("genkit_cli", run_name="__main__", alter_sys=True)
    finally:
        # A child of a fork server skips these.
        atexit._run_exitfuncs()
