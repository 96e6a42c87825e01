"""Running figures of training.

They are read out only when a row is logged, so that the steps between never wait for the device.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.distributed import all_sum, gather_rows, processes


class Meter:
    """Means of figures and items per second since the last row, over all processes.

    Items are counted in `unit`. `losses` names the figures that are losses, in their order.
    """

    def __init__(self, unit: str, device: torch.device) -> None:
        self.unit, self.device = unit, device
        self.losses: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was taken in."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.items = self.skipped = 0
        self.waited = 0.0
        self.start()

    def start(self) -> None:
        """Take the time from now."""
        self.started = time.perf_counter()

    def add(self, figures: Mapping[str, Tensor], losses: Sequence[str], items: int) -> None:
        """Take in the scalars of one forward pass over so many items."""
        for name in figures:
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=self.device)
            self.counts[name] = self.counts.get(name, 0) + 1
        with torch.no_grad():
            torch._foreach_add_(
                [self.sums[name] for name in figures], [each.float() for each in figures.values()]
            )
        self.losses += [name for name in losses if name not in self.losses]
        self.items += items

    def skip(self) -> None:
        """Take in a step that was skipped."""
        self.skipped += 1

    def read(self) -> dict[str, Any]:
        """The figures since the last call, and start anew."""
        names = list(self.sums)
        means = [self.sums[name] / self.counts[name] for name in names]
        totals = all_sum(torch.stack(means)) / processes() if means else torch.zeros(0)
        seconds = time.perf_counter() - self.started
        row = {
            **dict(zip(names, totals.tolist(), strict=True)),
            "skipped": self.skipped,
            f"{self.unit}_per_second": self.items * processes() / seconds,
            "waiting": self.waited / seconds,
            "memory_mb": peak_memory(self.device),
        }
        self.restart()
        return row

    def state(self) -> dict[str, Any]:
        """The sums of all processes since the last row, for a resumed run."""
        sums = torch.stack([torch.zeros((), device=self.device), *self.sums.values()])
        return {
            "names": list(self.sums),
            "counts": list(self.counts.values()),
            "sums": gather_rows(sums[None]),
            "skipped": self.skipped,
        }

    def load(self, state: Mapping[str, Any], process: int) -> None:
        """Restore the sums of `process`."""
        sums = state["sums"][process].to(self.device)[1:]
        self.sums = dict(zip(state["names"], sums.unbind(), strict=True))
        self.counts = dict(zip(state["names"], state["counts"], strict=True))
        self.skipped = state["skipped"]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for the next batch."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent inside out of the items per second."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before


def peak_memory(device: torch.device) -> float | None:
    """The most megabytes that this process has held: of the GPU's memory, or on a CPU of all."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    # On Linux `ru_maxrss` counts the process that started this one as well; this does not.
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE):
        return round(int(found[1]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows has no such figure.
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)
