"""A task of the tests alone: fit a small network to a function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import option
from genkit.run.options import TrainingOptions
from genkit.settings import resolve
from genkit.training.learner import Learner
from genkit.training.optimizers import learning_rate, optimizer
from genkit.training.task import Pass, Summary, Validation


@dataclass(frozen=True, kw_only=True)
class CurveRun(TrainingOptions):
    """A training run with one extra option."""

    width: int = option(8, "hidden units", minimum=1)

    @property
    def name(self) -> str:
        return "curve"


class Curve:
    """Fits a network to sin(3 x). A batch is a dict of two tensors."""

    fingerprint = "sine"

    def __init__(self, run: CurveRun, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        network = nn.Sequential(nn.Linear(1, run.width), nn.Tanh(), nn.Linear(run.width, 1))
        self.learners = [
            Learner(
                "curve",
                network,
                accelerator,
                optimizer(run, run.optimizer, run.lr),
                learning_rate(run, run.lr),
                clip=run.clip,
                accumulate=run.accumulate,
                ema=run.ema,
            )
        ]
        self.summary = Summary("a network", "a sine", "points", 10**6, 100)
        self.seen = 0

    def prepare(self, directory: Path, progress: Any) -> None:
        progress("thinking", 1, 1)

    def batches(self, first: int) -> Iterator[tuple[dict[str, Tensor], Mapping[str, str]]]:
        run, each = self.run, self.accelerator
        for number in range(first * run.accumulate, run.steps * run.accumulate):
            seed = number * each.num_processes + each.process_index
            x = torch.rand(run.batch_size, 1, generator=torch.Generator().manual_seed(seed))
            yield {"x": x * 2 - 1, "y": (3 * (x * 2 - 1)).sin()}, {}

    def losses(self, batch: dict[str, Tensor], step: int) -> Pass:
        x, y = (each.to(self.accelerator.device) for each in batch.values())
        # Random draws that a resumed run must repeat.
        fitted = self.learners[0].model(x + 0.01 * torch.randn_like(x))
        return Pass({"fit": F.mse_loss(fitted, y)}, {"mean": fitted.mean()}, len(x))

    def after(self, passed: Pass, step: int, last: bool) -> tuple[dict[str, Tensor], bool]:
        return {}, True

    def fullest(self, step: int) -> int | None:
        return None

    def count(self, passes: Sequence[Pass], taken: bool) -> None:
        self.seen += sum(each.count for each in passes) if taken else 0

    def row(self, step: int) -> dict[str, Any]:
        return {"seen": self.seen}

    def validate(self, step: int) -> Validation:
        x = torch.linspace(-1, 1, 100)[:, None]
        with torch.no_grad():
            error = F.mse_loss(self.learners[0].final(x), (3 * x).sin())
        return Validation({"validation": {"error": float(error)}})

    def problems(self) -> dict[str, str]:
        return {}

    def save(self, path: Path, step: int) -> None:
        save_file(self.learners[0].final.state_dict(), path)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def curve_run(**changes: Any) -> CurveRun:
    """A run of a second."""
    settings = {
        **{
            "steps": 60,
            "batch_size": 16,
            "lr": 0.1,
            "warmup": 5,
            "ema": 0.9,
            "accumulate": 2,
            "optimizer": "adamw",
            "schedule": "cosine",
        },
        **{"log_every": 10, "validate_every": 20, "checkpoint_every": 7},
    }
    run: CurveRun = resolve(CurveRun, {**settings, **changes})
    return run
