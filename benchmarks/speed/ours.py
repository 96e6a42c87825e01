"""Timed runs of genkit with the command's own loop, in one or several processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.optim.optimizer import register_optimizer_step_post_hook

import genkit
from benchmarks.speed.timing import events, spread
from genkit.distributed import all_sum, processes
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.training.loop import Reporter, train
from genkit.training.meeting import meeting
from genkit.training.tokenizer import TokenizerTask

DEFAULT: dict[str, Any] = {"encoder": {"levels": 2, "attention": "pixel"}}
# The number of parameters, the strides (4 and 8) and the 512 codes per level of VQ-VAE-2.
SAME_SIZE: dict[str, Any] = {
    "encoder": {"levels": 2, "attention": "pixel", "patch": 4, "width": [32, 32, 128]},
    "decoder": {"patch": 4, "width": [32, 32, 128]},
}

# Warm-up steps of each process.
_WARM = 2
# The profiler's names of types, and their sizes in bytes.
_BYTES = {"float": 4, "double": 8, "long int": 8, "int": 4, "unsigned char": 1, "bool": 1}


@dataclass
class Timed(Reporter):
    """The seconds of every step, the rows and the saved model's state of a run."""

    between: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, *facts: Any) -> None:
        self.start = clock()

    def advance(self, step: int) -> None:
        self.seconds.append(clock() - self.start)
        self.between()
        self.start = clock()

    def row(self, row: Mapping[str, Any], losses: Sequence[str]) -> None:
        self.rows.append(row)

    def end(self, *facts: Any) -> None:
        pass


def timed(run: TokenizerRun, between: Callable[[], object] = lambda: None) -> Timed:
    """Train with the command's loop; a step lasts from one call of `between` to the next."""
    forget_precision()
    found = Timed(between)
    with tempfile.TemporaryDirectory() as folder:
        train(TokenizerTask, run, Path(folder) / "run", found)
        found.state = genkit.load(Path(folder) / "run").state_dict()
    return found


def forget_precision() -> None:
    """Allow the next run another precision; Accelerate allows one per process.

    Run float32 before bf16: bf16 code uses the precision that Accelerate was given last.
    """
    AcceleratorState._reset_state()


def device() -> torch.device:
    """The device that `genkit train` uses on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock() -> float:
    """Seconds: CPU time on one CPU thread, otherwise wall time, after the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def rows_of(processes: int, flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of metrics of a complete `genkit train` run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"attention": "pixel", "processes": processes, **flags, "out": folder}
        subprocess.run(
            [
                *(sys.executable, "-m", "genkit_cli", "train"),
                *(text for name, value in flags.items() for text in (f"--{name}", str(value))),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Share:
    """The measurements of one process in a run with several.

    `seconds` is its CPU time per step; `handed` the bytes that it sends to collectives per step;
    `waiting` its CPU usage while it waits for others.
    """

    seconds: list[float]
    handed: int
    waiting: float


def turns(settings: Mapping[str, Any], counts: Sequence[int], quick: bool) -> dict[str, Any]:
    """The CPU time of more processes than cores, training together and separately."""
    shares: dict[bool, list[list[Share]]] = {False: [], True: []}
    for count in counts:
        steps = 2 if quick else max(2, 16 // count)
        for joined in (False, True):
            alone = joined and count == 1
            found = shares[False][0] if alone else side_by_side(settings, count, steps, joined)
            shares[joined].append(found)
    seconds = {
        joined: [spread([second for share in each for second in share.seconds]) for each in found]
        for joined, found in shares.items()
    }
    return {
        "batch": settings["batch_size"],
        "sizes": list(counts),
        "together": seconds[True],
        "apart": seconds[False],
        "handed": [each[0].handed for each in shares[True]],
        "waiting": max(share.waiting for each in shares[True] for share in each),
    }


def side_by_side(settings: Mapping[str, Any], count: int, steps: int, joined: bool) -> list[Share]:
    """The measurements of `count` processes, one thread each, that train together or separately.

    They get the same environment as from `genkit train --processes`, so they use gloo over
    loopback. They are forked from a server with all large imports, which saves time and memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    found, start = context.SimpleQueue(), context.Barrier(count)
    with tempfile.TemporaryDirectory() as folder:
        few = {"log_every": 10**6, "checkpoint_every": 10**6, "validate_every": 10**6}
        run = layered(None, settings, {**few, "steps": _WARM + steps + 1, "validation_images": 1})
        common = meeting(count) if joined and count > 1 else {}
        work = (common, run, folder, start, found)
        start_processes(_share, work, count, start_method="forkserver")
        return [found.get() for _ in range(count)]


def _share(
    rank: int, common: Mapping[str, str], settings: Any, folder: str, start: Any, found: Any
) -> None:
    torch.set_num_threads(1)
    if common:
        os.environ |= {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    run = resolve_run(settings)
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    )
    times: list[float] = []
    waits = []

    def done(*_: Any) -> None:
        """Runs after each optimizer step. The last step is profiled instead of timed."""
        steps = len(times) + 1
        if steps == _WARM:
            start.wait()
        elif steps == run.steps:
            profile.stop()
            start.wait()
            waits.append(_wait(rank))
        times.append(time.process_time())
        if steps == run.steps - 1:
            profile.start()

    register_optimizer_step_post_hook(done)
    train(TokenizerTask, run, Path(folder) / ("run" if common else str(rank)), Timed(lambda: None))
    seconds = [after - before for before, after in pairwise(times[_WARM - 1 : run.steps - 1])]
    found.put(Share(seconds, _handed(profile), waits[0]))


def _wait(rank: int) -> float:
    """The CPU usage of the first process while it waits for the others."""
    if processes() == 1:
        return 0.0
    if rank:
        time.sleep(1)
    clock, processor = time.perf_counter(), time.process_time()
    all_sum(torch.zeros(1))
    passed = time.perf_counter() - clock
    return 0.0 if rank else (time.process_time() - processor) / passed


def _handed(profile: torch.profiler.profile) -> int:
    """The bytes sent to gloo's collectives."""
    return sum(
        math.prod(shape) * _BYTES[kind]
        for event in events(profile)
        if event.name().startswith("gloo:")
        for shape, kind in zip(event.shapes(), event.dtypes(), strict=True)
    )
