"""Learning-rate schedules, as a share of the peak learning rate, after the warm-up."""

from __future__ import annotations

import math

from genkit import NoOptions
from genkit_optimizers import CosineOptions


class Cosine:
    """Cosine decay from 1 to `final_lr` (Loshchilov and Hutter, arXiv 1608.03983)."""

    def __init__(self, options: CosineOptions, steps: int, warmup: int) -> None:
        self.final, self.steps, self.warmup = options.final_lr, steps, warmup

    def __call__(self, step: int) -> float:
        """The share of the peak learning rate at a step."""
        passed = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, passed))) / 2


class Constant:
    """The peak learning rate at every step."""

    def __init__(self, options: NoOptions, steps: int, warmup: int) -> None:
        pass

    def __call__(self, step: int) -> float:
        """The share of the peak learning rate at a step."""
        return 1.0
