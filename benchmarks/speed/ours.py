"""Runs of ours that are timed: by the command's own loop, or a step at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

import genkit
from genkit.run import Run
from genkit.training.loop import Reporter, train

DEFAULT: dict[str, Any] = {"encoder": {"levels": 2, "attention": "pixel"}}
# As many parameters as VQ-VAE-2 has, with its strides 4 and 8 and 512 codes a level.
SAME_SIZE: dict[str, Any] = {
    "encoder": {"levels": 2, "attention": "pixel", "patch": 4, "width": [32, 32, 128]},
    "decoder": {"patch": 4, "width": [32, 32, 128]},
}


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

    def row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def end(self, *facts: Any) -> None:
        pass


def timed(run: Run, between: Callable[[], object] = lambda: None) -> Timed:
    """Train by the command's loop; all between two calls of `between` is a step's time."""
    forget_precision()
    found = Timed(between)
    with tempfile.TemporaryDirectory() as folder:
        train(run, Path(folder) / "run", found)
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
