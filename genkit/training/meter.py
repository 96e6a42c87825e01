"""Running figures of training.

They are read out only when a row is logged, so that the steps between never wait for the device.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genkit.codes import CodeCounts
from genkit.distributed import all_sum, processes
from genkit.errors import TrainingError

_NORM = "gradient_norm"


class Meter:
    """Means of losses, use of codes and images per second since the last row, of all processes."""

    def __init__(self, codebooks: Sequence[tuple[int, int]], device: torch.device) -> None:
        self.codebooks, self.device = codebooks, device
        self.restart()

    def restart(self) -> None:
        """Forget what was taken in, and take the time from now."""
        self.codes = CodeCounts(self.codebooks, self.device)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images = 0
        self.started = time.perf_counter()

    def add(self, values: Mapping[str, Tensor], indices: Sequence[Tensor]) -> None:
        """Take in the scalars and the indices of one forward pass."""
        for name, value in values.items():
            self.sums[name] = (
                self.sums.get(name, torch.zeros((), device=self.device)) + value.detach().float()
            )
            self.counts[name] = self.counts.get(name, 0) + 1
        self.codes.add(indices)
        self.images += len(indices[0])

    def read(self) -> dict[str, Any]:
        """The figures since the last call, and start anew.

        `TrainingError` if a loss is no longer a number.
        """
        stacked = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        means = dict(zip(self.sums, (all_sum(stacked) / processes()).tolist(), strict=True))
        seconds = time.perf_counter() - self.started
        row = {
            **means,
            "levels": self.codes.summary(),
            "images_per_second": self.images * processes() / seconds,
            "memory_mb": _peak_memory(self.device),
        }
        _refuse_broken(means)
        self.restart()
        if _NORM in row and not math.isfinite(row[_NORM]):
            row[_NORM] = None  # JSON has no infinity.
        return row

    def check(self) -> None:
        """`TrainingError` if a loss of a step since the last row was no number."""
        _refuse_broken({name: float(value) for name, value in self.sums.items()})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the images per second."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before


def _peak_memory(device: torch.device) -> float | None:
    """The most megabytes that this process has held: of the GPU's memory, or on a CPU of all."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows has no such figure.
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _refuse_broken(losses: Mapping[str, float]) -> None:
    # A gradient out of range is no failure: loss scaling skips such a step and goes on.
    broken = [name for name, x in losses.items() if name != _NORM and not math.isfinite(x)]
    if broken:
        raise TrainingError(
            f"{', '.join(broken)} became infinite or not a number: "
            "try a lower --lr, --clip 1, a longer --warmup, or --mixed-precision no"
        )
