"""Small tasks that the training loop must treat alike: fitting a curve, and training a prior.

`python tasks.py TASK OUT` trains one in its own process; `--resume`, `--kill STEP` and `--wild`
come before TASK. The prior's tokenizer is in the folder that TOKENIZER names.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from curve import Curve, curve_run
from table import Table

import genkit
from genkit import Component
from genkit.run.prior import PriorRun
from genkit.settings import resolve
from genkit.training.prior import PriorTask

# Options that make every step fail.
WILD = {"lr": 1e38, "clip": 0, "warmup": 0, "max_skipped": 3}


class Kind(NamedTuple):
    """A task, its runs, and where they log the loss that falls."""

    task: Any
    run: Callable[..., Any]
    loss: str
    loss_of_row: Callable[[Any], float]
    # An option that makes another run, with another value.
    other: tuple[str, Any]


def prior_run(**changes: Any) -> Any:
    """A prior's run of a second."""
    genkit.register(Component("prior", "table", Table))
    settings = {
        "tokenizer": os.environ["TOKENIZER"],
        "prior": "table",
        "data": {"heldout": 8},
        **{"steps": 60, "batch_size": 16, "lr": 0.1, "warmup": 5, "ema": 0.9, "accumulate": 2},
        **{"optimizer": "adamw", "schedule": "cosine", "validation_images": 8, "shown": 2},
        **{"log_every": 10, "validate_every": 20, "checkpoint_every": 7},
    }
    return resolve(PriorRun, PriorRun.layered(None, settings, changes))


TASKS = {
    "curve": Kind(Curve, curve_run, "fit", lambda row: row["validation"]["error"], ("width", 9)),
    "prior": Kind(
        PriorTask, prior_run, "nats", lambda row: row["validation"]["nats"], ("encode", "always")
    ),
}


def main(args: list[str]) -> None:
    """Train with the options of the command line."""
    from conftest import Silent

    from genkit.training.loop import train

    class Mortal(Silent):
        def advance(self, step: int) -> None:
            if "--kill" in args and step == int(args[args.index("--kill") + 1]):
                os.kill(os.getpid(), signal.SIGKILL)

    kind = TASKS[args[-2]]
    run = kind.run(**(WILD if "--wild" in args else {}))
    train(kind.task, run, Path(args[-1]), Mortal(), resume="--resume" in args)


if __name__ == "__main__":
    main(sys.argv[1:])
