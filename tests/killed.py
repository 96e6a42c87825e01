"""Runs in real processes that are killed, and their remains.

`python killed.py N train …` is `genkit train …` that kills itself, as SIGKILL does, at the Nth time
it opens, renames or removes something in its run directory.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")

# A kill may come after the last checkpoint, when no steps remain.
DONE = "already: give a larger --steps to continue"


def kill_at(number: int, out: str) -> None:
    """Kill this process at the `number`th event below the folder `out`."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        path = args[0] if event in EVENTS else None
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(out):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(settings: Sequence[str], out: Path, kills: int, seed: int, processes: int = 1) -> int:
    """Train into `out`, killed up to `kills` times at random moments; returns the number of kills.

    Half of the kills come while a file is written, the others at any time after the start. The last
    one leaves the run unfinished, unless it came after the last checkpoint.
    """
    draw = random.Random(seed)
    struck = 0
    more = ["--processes", str(processes)] if processes > 1 else []
    for _ in range(kills):
        start = (out / "config.toml").is_file()
        chosen = ["--resume"] if start else list(settings)
        at_file = processes == 1 and draw.random() < 0.5
        head = [__file__, str(draw.randint(1, 60))] if at_file else ["-m", "genkit_cli"]
        process = subprocess.Popen(
            [sys.executable, "-u", *head, "train", *chosen, *more, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout
        if not at_file:
            for line in process.stdout:
                if "→" in line:
                    break
            time.sleep(draw.random() * 1.5)
            # All of its processes at once, as in a power failure.
            os.killpg(process.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=100)
        if process.returncode == 0 or DONE in error:
            return struck
        assert process.returncode == -signal.SIGKILL, error
        struck += 1
    return struck


def killed_until_done(args: Sequence[str], out: Path, kills: int, seed: int) -> int:
    """Run `genkit ARGS --out OUT`, killed up to `kills` times, to its end; returns the kills.

    Half of the kills come while a file is written, the others at any time.
    """
    draw = random.Random(seed)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for struck in range(kills + 1):
        at_file = struck < kills and "--processes" not in args and draw.random() < 0.5
        head = [__file__, str(draw.randint(1, 30))] if at_file else ["-m", "genkit_cli"]
        process = subprocess.Popen(
            [sys.executable, *head, *args, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=env,
        )
        if struck < kills and not at_file:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.8 + 2 * draw.random())
            with contextlib.suppress(ProcessLookupError):
                # All of its processes at once, as in a power failure.
                os.killpg(process.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=200)
        if process.returncode == 0 or "already: name another --out" in error:
            return struck
        assert process.returncode == -signal.SIGKILL, error
    raise AssertionError("unreachable")


if __name__ == "__main__":
    kill_at(int(sys.argv.pop(1)), os.path.abspath(sys.argv[-1]))
    from genkit_cli.main import main

    main()
