"""The chosen optimizer and learning-rate schedule, applied to one learner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from genkit.plugin.options import Part
from genkit.run.options import TrainingOptions


def optimizer(
    run: TrainingOptions, chosen: Part, lr: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A function that builds the `chosen` optimizer for a module.

    Its `dtype` is bfloat16 if the run computes in it, else float32.
    """
    dtype = torch.bfloat16 if run.mixed_precision == "bf16" else torch.float32
    return lambda module: chosen.build(module, lr, dtype)


def learning_rate(run: TrainingOptions, peak: float) -> Callable[[int], float]:
    """The learning rate by step: a linear rise to the peak during warm-up, then the schedule."""
    schedule = run.schedule.build(run.steps, run.warmup)

    def at(step: int) -> float:
        rise = min(1.0, (step + 1) / run.warmup) if run.warmup else 1.0
        return peak * rise * schedule(step)

    return at
