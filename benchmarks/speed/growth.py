"""The growth of a training step's cost, and where it stops being linear."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.jobs import table
from benchmarks.speed import ours
from benchmarks.speed.timing import Settings, Work, cell, interleaved, peak_memory, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "How cost grows"

# The largest deviation from 1 of a local exponent that still counts as linear.
_LINEAR = 0.2
_STRIDES = (4, 8, 16, 32)
_BATCH = 16
# Images per step where resolution grows, and per process where several share the cores.
_FEW, _SHARED = 4, 8


@dataclass(frozen=True)
class _Growth:
    """A quantity that grows: its panel, its sizes, and the settings for each size.

    `work` is `step` for a training step or `encode`. The exponents count each size to the power
    of `raised`.
    """

    name: str
    panel: str
    sizes: tuple[int, ...]
    default: int
    settings: Callable[[int], dict[str, Any]]
    work: str = "step"
    raised: int = 1


def _run(
    resolution: int = 64,
    batch: int = _BATCH,
    levels: int = 2,
    codes: int = 512,
    attention: str = "pixel",
) -> dict[str, Any]:
    strides = list(_STRIDES[: max(levels, 2)])
    encoder = {"name": "aren", "levels": levels, "strides": strides, "attention": attention}
    return {
        "encoder": encoder,
        "quantizer": {"name": "vq", "codebook_size": codes},
        "resolution": resolution,
        "batch_size": batch,
    }


_RESOLUTIONS = (32, 64, 128, 256)
_GROWTHS = (
    _Growth(
        "pixels, with attention",
        "resolution",
        _RESOLUTIONS,
        64,
        lambda size: _run(resolution=size, batch=_FEW),
        raised=2,
    ),
    _Growth(
        "pixels, without attention",
        "resolution",
        _RESOLUTIONS,
        64,
        lambda size: _run(resolution=size, batch=_FEW, attention="none"),
        raised=2,
    ),
    _Growth(
        "pixels, `encode` with attention",
        "resolution",
        (*_RESOLUTIONS, 512),
        64,
        lambda size: _run(resolution=size, batch=_FEW),
        work="encode",
        raised=2,
    ),
    _Growth("levels", "levels", (1, 2, 3, 4), 2, lambda size: _run(levels=size)),
    _Growth(
        "codebook size",
        "codes in each codebook",
        (128, 512, 2048, 8192, 16384),
        512,
        lambda size: _run(codes=size),
    ),
    _Growth(
        "batch", "images a step", (1, 2, 4, 8, 16, 32, 64), _BATCH, lambda size: _run(batch=size)
    ),
)


def measure(settings: Settings) -> dict[str, Any]:
    # First, because child processes inherit the peak memory of this process.
    processes = _processes(settings)
    # Early steps often revive codes, and each revival sends all latents to a collective.
    run = _run(batch=_SHARED)
    run["quantizer"]["revive"] = 0
    counts = (1, 4) if settings.quick else (1, 2, 4, 8, 16)
    simulated = ours.turns(run, counts, settings.quick) if settings.device == "cpu" else None
    growths = {each.name: _measure(each, settings) for each in _GROWTHS}
    return {
        "growths": growths,
        "processes": processes,
        "simulated": simulated,
        "device": settings.device,
    }


def _measure(growth: _Growth, settings: Settings) -> dict[str, Any]:
    sizes = growth.sizes[:2] if settings.quick else growth.sizes
    works = {str(size): _work(growth, size, settings) for size in sizes}
    times = interleaved(works, seconds=8, rounds=(1, 1) if settings.quick else (4, 50))
    return {
        "panel": growth.panel,
        "raised": growth.raised,
        "sizes": list(sizes),
        "default": growth.default,
        "seconds": [spread(each) for each in times.values()],
        "bytes": [peak_memory(each) for each in works.values()],
    }


def _work(growth: _Growth, size: int, settings: Settings) -> Work:
    from accelerate import Accelerator

    from genkit.images import from_pixels
    from genkit.run.options import layered, resolve_run
    from genkit.training.tokenizer import TokenizerTask
    from genkit.training.trainer import Trainer

    # Small images with `quick`.
    small = {"resolution": 32} if settings.quick and growth.panel != "resolution" else {}
    run = resolve_run(layered(None, growth.settings(size) | small))
    accelerator = Accelerator(cpu=settings.device == "cpu")
    trainer = Trainer(run, accelerator, TokenizerTask(run, accelerator))
    shape = (run.batch_size, *run.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    trainer.learner.module.train(growth.work == "step")
    if growth.work == "step":
        return lambda: trainer.step([pixels], 0)
    images = from_pixels(pixels.to(settings.device))
    return lambda: trainer.learner.module.encode(images)


def _processes(settings: Settings) -> dict[str, Any]:
    """Images per second of complete runs with one or more processes, each with its own batch."""
    most = torch.cuda.device_count() if settings.device == "cuda" else 2
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    steps, every, rounds = (4, 2, 1) if settings.quick else (15, 3, 2)
    flags = {"batch-size": _FEW if settings.quick else _BATCH, "steps": steps, "log-every": every}
    flags |= {"validation-images": 1}
    rates: dict[int, list[float]] = {count: [] for count in counts}
    memory: dict[int, float] = {}
    for _ in range(rounds):
        for count in counts:
            rows = ours.rows_of(count, flags)
            rates[count] += [row["images_per_second"] for row in rows[1:]]
            memory[count] = max(row["memory_mb"] for row in rows)
    return {
        "cores": os.cpu_count(),
        "sizes": counts,
        "images_per_second": [spread(rates[count]) for count in counts],
        "bytes": [memory[count] * 2**20 for count in counts],
    }


def slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
    """The local exponents between neighbouring sizes."""
    return [
        math.log(after / before) / math.log(larger / smaller)
        for (smaller, larger), (before, after) in zip(pairwise(sizes), pairwise(costs), strict=True)
    ]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of the best-fitting power law, by least squares of logarithms."""
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    ).slope


def course(sizes: Sequence[int], local: Sequence[float]) -> str:
    """The ranges of sizes with sublinear, linear and superlinear growth."""

    def manner(pair: tuple[int, float]) -> str:
        if abs(pair[1] - 1) <= _LINEAR:
            return "linear"
        return "sublinear" if pair[1] < 1 else "superlinear"

    ranges = []
    for name, pairs in groupby(enumerate(local), manner):
        numbers = [number for number, _ in pairs]
        ranges.append(f"{name} {sizes[numbers[0]]:,}–{sizes[numbers[-1] + 1]:,}")
    return ", ".join(ranges)


def page(figures: dict[str, Any], folder: Path) -> str:
    picture = folder / f"growth{'-gpu' if figures['device'] == 'cuda' else ''}.png"
    _plot(figures, picture)
    rows = []
    for name, each in figures["growths"].items():
        rows += [
            _row(name, "ms", each, _milliseconds(each)),
            _row("", "MB", each, _megabytes(each)),
        ]
    return "\n\n".join(
        [
            "Time and peak memory of tensors (without weights and averages) in a training step of "
            "the default model with attention: 64 px, 16 images, 2 levels, 512 codes per level. "
            f"One quantity grows at a time; {_FEW} images where the resolution grows. The "
            "exponent is that of the best-fitting power; the local exponents are between "
            "neighbouring sizes. "
            f"Growth is called linear if these are within {_LINEAR} of 1. It is sublinear while "
            "constant cost dominates. Rows of pixels name the side of the image but the "
            "exponents count pixels.",
            table(
                ("what grows", "", "cost at each size", "exponent", "local exponents", "growth"),
                rows,
            ),
            f"![Time and memory against each of these](performance/{picture.name})",
            *_told_processes(figures),
        ]
    )


def _milliseconds(each: dict[str, Any]) -> list[float]:
    return [1000 * value["median"] for value in each["seconds"]]


def _megabytes(each: dict[str, Any]) -> list[float]:
    return [value / 1e6 for value in each["bytes"]]


def _row(name: str, unit: str, each: dict[str, Any], costs: list[float]) -> tuple[str, ...]:
    sizes = each["sizes"]
    amounts = [size ** each["raised"] for size in sizes]
    local = slopes(amounts, costs)
    return (
        name,
        unit,
        ", ".join(f"{size:,}: {cost:,.0f}" for size, cost in zip(sizes, costs, strict=True)),
        f"**{exponent(amounts, costs):.2f}**",
        " ".join(f"{slope:.2f}" for slope in local),
        course(sizes, local),
    )


def _told_processes(figures: dict[str, Any]) -> list[str]:
    each = figures["processes"]
    rates = each["images_per_second"]
    alone = rates[0]["median"]
    rows = [
        (count, cell(rate, 1), f"{rate['median'] / alone / count:.0%}", f"{memory / 1e6:,.0f}")
        for count, rate, memory in zip(each["sizes"], rates, each["bytes"], strict=True)
    ]
    head = (
        "processes",
        "images per second, total",
        "of linear",
        "MB per process, everything included",
    )
    where = "one GPU each" if figures["device"] == "cuda" else "one thread each, over loopback"
    return [
        f"Whole runs of `genkit train --processes N`, {where}, each process with its own batch. "
        f"Wall time is measured up to {each['sizes'][-1]} processes, and includes the effect of "
        f"other programs on the machine's {each['cores']} cores.",
        table(head, rows),
        *_told_simulated(figures.get("simulated"), each["cores"]),
    ]


def _told_simulated(each: dict[str, Any] | None, cores: int) -> list[str]:
    if each is None:
        return []
    costs = ["ms per step and process", "apart", "MB sent to collectives"]
    head = ["processes", *costs, "images per second, upper bound", "of linear"]
    rates = _at_most(each)
    milliseconds = [
        [cell({part: 1e3 * value[part] for part in ("median", "low", "high")}, 0) for value in way]
        for way in (each["together"], each["apart"])
    ]
    handed = [f"{value / 1e6:.2f}" for value in each["handed"]]
    most = [f"{rate:.1f}" for rate in rates]
    shares = [f"{rate / rates[0] / n:.0%}" for n, rate in zip(each["sizes"], rates, strict=True)]
    rows = list(zip(each["sizes"], *milliseconds, handed, most, shares, strict=True))
    return [
        f"**Simulated: processes take turns on {cores} cores and are measured by their CPU time, "
        "without waiting for the network.** Real processes train together with gloo over "
        f"loopback, each on one thread with {each['batch']} images of its own, without revival. "
        "`Apart` trains as many separate models at once: its time beyond that of one process is "
        "the price of shared cores and caches, not of training together. The data sent to "
        "collectives per step are gradients, and the counts and sums of the quantizers. The upper "
        "bound assumes one core per process and no waiting "
        "except the copying to and from loopback. gloo sleeps while it waits: a process that "
        f"waited for another used {each['waiting']:.1%} of its CPU. The CPU time of all processes "
        f"grows with their number to the power of {_total(each):.2f}.",
        table(head, rows),
    ]


def _at_most(each: dict[str, Any]) -> list[float]:
    """Images per second for each number of processes, if each had its own core."""
    pairs = zip(each["sizes"], each["together"], strict=True)
    return [count * each["batch"] / value["median"] for count, value in pairs]


def _total(each: dict[str, Any]) -> float:
    """The exponent of the total CPU time of all processes."""
    sizes = each["sizes"]
    pairs = zip(sizes, each["together"], strict=True)
    return exponent(sizes, [size * value["median"] for size, value in pairs])


def _plot(figures: dict[str, Any], picture: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels: dict[str, dict[str, Any]] = {}
    for name, each in figures["growths"].items():
        panels.setdefault(each["panel"], {})[name] = each
    columns = len(panels) + 1
    with plt.style.context("default"):
        figure, axes = plt.subplots(2, columns, figsize=(3.2 * columns, 6.4), layout="constrained")
        for (time, memory), (panel, lines) in zip(axes.T, panels.items(), strict=False):
            time.sharey(axes[0][0])
            memory.sharey(axes[1][0])
            for name, each in lines.items():
                label = name.partition(", ")[2].replace("`", "") or "exponent"
                _draw(time, each, _milliseconds(each), label)
                _draw(memory, each, _megabytes(each), label)
            time.set_title(panel)
            memory.set_xlabel(panel)
        growths = figures["growths"].values()
        for first, label, costs in (
            (
                axes[0][0],
                "milliseconds",
                [cost for each in growths for cost in _milliseconds(each)],
            ),
            (axes[1][0], "MB of tensors", [cost for each in growths for cost in _megabytes(each)]),
        ):
            # The measured costs fill the picture; the linear lines may leave it.
            first.set(ylabel=label, ylim=(min(costs) / 1.5, max(costs) * 12))

        alone, legend = axes[0][-1], axes[1][-1]
        _draw_processes(alone, figures)
        legend.axis("off")
        legend.plot([], [], "o-", color="grey", label="measured, with its exponent")
        legend.plot([], [], "--", color="grey", label="linear from the default's size")
        legend.legend(loc="center", frameon=False)
        figure.savefig(picture, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _draw(axes: Axes, each: dict[str, Any], costs: list[float], label: str) -> None:
    sizes = each["sizes"]
    amounts = [size ** each["raised"] for size in sizes]
    at = sizes.index(each["default"]) if each["default"] in sizes else 0
    linear = [costs[at] * amount / amounts[at] for amount in amounts]
    _line(axes, sizes, costs, linear, f"{label} {exponent(amounts, costs):.2f}")


def _draw_processes(axes: Axes, figures: dict[str, Any]) -> None:
    """Images per second of complete runs, and the bound for more processes with their own cores."""
    each = figures["processes"]
    rates = [value["median"] for value in each["images_per_second"]]
    _line(axes, each["sizes"], rates, [rates[0] * size for size in each["sizes"]], "whole runs")
    if each := figures.get("simulated"):
        rates = _at_most(each)
        linear = [rates[0] * size for size in each["sizes"]]
        _line(axes, each["sizes"], rates, linear, f"simulated, cost {_total(each):.2f}", "s:")
    axes.set(title="processes", ylabel="images per second, total")


def _line(
    axes: Axes,
    sizes: Sequence[int],
    costs: Sequence[float],
    linear: Sequence[float],
    label: str,
    marks: str = "o-",
) -> None:
    """A line through the costs of all sizes, and a dashed line for linear growth."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (line,) = axes.loglog(sizes, costs, marks, markersize=4, label=label)
    axes.loglog(sizes, linear, "--", linewidth=0.8, color=line.get_color())
    axes.set_xticks(sizes, [f"{size // 1024}k" if size > 1000 else f"{size}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
