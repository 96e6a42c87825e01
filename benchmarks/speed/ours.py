"""Runs of ours that are timed: by the command's own loop, in one process or several."""

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
# As many parameters as VQ-VAE-2 has, with its strides 4 and 8 and 512 codes a level.
SAME_SIZE: dict[str, Any] = {
    "encoder": {"levels": 2, "attention": "pixel", "patch": 4, "width": [32, 32, 128]},
    "decoder": {"patch": 4, "width": [32, 32, 128]},
}

# Steps of each of several processes before their time counts.
_WARM = 2
# What the profiler calls a type, and its bytes.
_BYTES = {"float": 4, "double": 8, "long int": 8, "int": 4, "unsigned char": 1, "bool": 1}


@dataclass
class Timed(Reporter):
    """Seconds of every step, rows, and the saved model's state, of a run."""

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
    """Train by the command's loop; all between two calls of `between` is a step's time."""
    forget_precision()
    found = Timed(between)
    with tempfile.TemporaryDirectory() as folder:
        train(TokenizerTask, run, Path(folder) / "run", found)
        found.state = genkit.load(Path(folder) / "run").state_dict()
    return found


def forget_precision() -> None:
    """Let the next run have another precision: Accelerate refuses a second one in a process.

    A float32 run asks only itself what to compute in, one in bf16 what was asked for last.
    """
    AcceleratorState._reset_state()


def device() -> torch.device:
    """Where `genkit train` trains here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock() -> float:
    """Seconds: the processor's on one thread of a CPU, on a GPU when it has done all so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def rows_of(processes: int, flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of metrics of a whole run of `genkit train`."""
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
    """A process's part in a run of several.

    `seconds` are its own processor's, of each step; `handed` are the bytes that it gives to
    collectives in a step; `waiting` is the share of its processor that a wait for others takes.
    """

    seconds: list[float]
    handed: int
    waiting: float


def turns(settings: Mapping[str, Any], counts: Sequence[int], quick: bool) -> dict[str, Any]:
    """What more processes than cores take of the processor, together and apart."""
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
    """The parts of `count` processes that train together, or each for itself, on a thread each.

    They get what `genkit train --processes` gives its processes, and so meet by gloo over loopback.
    They are forked off a server that has imported all that is large, for less time and memory.
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
        """After each step of the optimizer; the last step is not timed but looked into."""
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
    """The share of its processor that the first process takes while it waits for the others."""
    if processes() == 1:
        return 0.0
    if rank:
        time.sleep(1)
    clock, processor = time.perf_counter(), time.process_time()
    all_sum(torch.zeros(1))
    passed = time.perf_counter() - clock
    return 0.0 if rank else (time.process_time() - processor) / passed


def _handed(profile: torch.profiler.profile) -> int:
    """The bytes that gloo's collectives were given."""
    return sum(
        math.prod(shape) * _BYTES[kind]
        for event in events(profile)
        if event.name().startswith("gloo:")
        for shape, kind in zip(event.shapes(), event.dtypes(), strict=True)
    )
