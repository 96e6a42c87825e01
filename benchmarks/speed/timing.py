"""Time and memory of pieces of work, compared in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Options of a section: `quick` for a rough look, `device` as `cpu` or `cuda`, `threads`."""

    quick: bool = False
    device: str = "cpu"
    threads: int = 1


def interleaved(
    work: Mapping[str, Work], seconds: float = 2.0, rounds: tuple[int, int] = (5, 200)
) -> dict[str, list[float]]:
    """Seconds of each piece of work, round by round: A B C A B C ….

    After a warm-up, as many rounds as fit into `seconds`, within the bounds `rounds`. On one CPU
    thread this is CPU time, which excludes other programs.
    """
    for each in work.values():
        each()
        each()
    times: dict[str, list[float]] = {name: [] for name in work}
    ends = time.perf_counter() + seconds
    for turn in range(rounds[1]):
        if turn >= rounds[0] and time.perf_counter() > ends:
            break
        for name, each in work.items():
            times[name].append(_seconds(each))
    return times


def _seconds(work: Work) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles of times or ratios."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high, "rounds": len(values)}


def ratios(times: Mapping[str, Sequence[float]], below: str) -> dict[str, dict[str, float]]:
    """The time of each piece of work relative to `below`, compared round by round."""
    return {
        name: spread([a / b for a, b in zip(each, times[below], strict=True)])
        for name, each in times.items()
    }


def peak_memory(work: Work) -> int:
    """The peak bytes of tensors during the work, beyond the bytes held before.

    Counted exactly by torch's allocators; scratch memory that a library allocates itself is not
    included.
    """
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    held = most = 0
    for event in events(profile):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def events(profile: torch.profiler.profile) -> list[Any]:
    """All events of a finished profile, in order."""
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    return list(profile.profiler.kineto_results.events())


def limits(device: str) -> dict[str, float]:
    """The machine's limits: TFLOP/s of a bfloat16 product, GB/s of a copy."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    data = torch.empty(2**27, dtype=torch.uint8, device=device)
    copy = torch.empty_like(data)
    times = interleaved({"product": lambda: a @ b, "copy": lambda: copy.copy_(data)}, seconds=1.0)
    return {
        "tflops": 2 * size**3 / min(times["product"]) / 1e12,
        "gigabytes_per_second": 2 * len(data) / min(times["copy"]) / 1e9,
    }


def cell(value: dict[str, Any], digits: int = 2) -> str:
    """A table cell: a median with its quartiles."""
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"
