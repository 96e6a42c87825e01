"""`python -m benchmarks scale`: images a second of genkit's encoding and of `examples/ray`.

One and two processes are timed by the clock. More processes than cores take turns and are measured
by their CPU time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from torch.multiprocessing.spawn import start_processes

import genkit
from benchmarks.jobs import fill, table
from benchmarks.speed.input import draw
from benchmarks.speed.page import about, machine
from benchmarks.speed.timing import cell, spread
from genkit.data.split import Subset
from genkit.evaluation.images import all_images

ROOT = Path(__file__).parent.parent
WAYS = ("genkit", "Ray")
_SIDE, _RESOLUTION = 96, 64
_BATCH = 32
# Batches of each process, which are one shard. More by the clock, because Ray starts processes for
# writing after the first ones.
_LONG, _SHORT = 24, 8
_MEASURED, _SIMULATED = (1, 2), (1, 2, 4, 8, 16)
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@click.command()
@click.option("--quick", is_flag=True, help="Two processes, one round; not a measurement.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--out",
    default=ROOT / "docs",
    type=click.Path(path_type=Path),
    help="Folder of scale.md and performance/scale.json.",
)
@click.option("--render", is_flag=True, help="Write the page from existing figures.")
def main(quick: bool, rounds: int, out: Path, render: bool) -> None:
    """Measure encoding with several processes, and fill in OUT/scale.md."""
    os.environ |= _QUIET
    file = out / "performance" / "scale.json"
    if not render:
        figures = measure(quick, 1 if quick else rounds)
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    fill(out / "scale.md", "growth", page(json.loads(file.read_text(encoding="utf-8"))))


def measure(quick: bool, rounds: int) -> dict[str, Any]:
    """The measurements of each way and number of processes, in rounds."""
    loads = [os.getloadavg()[0]]
    counts, long = (_MEASURED, _SHORT) if quick else (_SIMULATED, _LONG)
    measured: dict[str, dict[int, Any]] = {way: {each: [] for each in _MEASURED} for way in WAYS}
    simulated: dict[str, dict[int, Any]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        command = [sys.executable, "-m", "genkit_cli", "train", "--steps", "0"]
        subprocess.run([*command, "--out", str(place / "model")], check=True, capture_output=True)
        (place / "images").mkdir()
        most = max(counts[-1] * _SHORT, _MEASURED[-1] * long)
        draw(place / "images", _SIDE, most * _BATCH)
        for _ in range(rounds):
            for count in _MEASURED:
                for way in WAYS:
                    measured[way][count].append(run(place, way, count, long))
                    loads.append(os.getloadavg()[0])
        for count in counts:
            for way in WAYS:
                simulated[way][count] = run(place, way, count, _SHORT)
                loads.append(os.getloadavg()[0])
    return {
        "machine": machine(False, 1, loads[0]),
        "loads": [min(loads), max(loads)],
        "cores": os.cpu_count(),
        "quick": quick,
        "batches": [long, _SHORT],
        "measured": measured,
        "simulated": simulated,
    }


def run(place: Path, way: str, count: int, batches: int) -> dict[str, Any]:
    """Encode a shard of so many batches for each of `count` processes."""
    images = place / f"images-{count}-{batches}"
    if not images.exists():
        images.mkdir()
        for file in sorted((place / "images").iterdir())[: count * batches * _BATCH]:
            (images / file.name).hardlink_to(file)
    with tempfile.TemporaryDirectory() as out:
        if way == "genkit":
            found = _together(place / "model", images, Path(out), count, batches)
        else:
            found = _on_ray(place / "model", images, Path(out), count)
    print(f"{way}, {count} processes: {found}", file=sys.stderr, flush=True)
    return found


def _together(model: Path, images: Path, out: Path, count: int, batches: int) -> dict[str, Any]:
    """Processes that share the shards of a folder, as with `genkit encode --processes`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genkit.tokens.encode", "torch._dynamo"])
    found, start = context.SimpleQueue(), context.Barrier(count)
    each = batches * _BATCH
    work = (count, each, model, images, out, start, found)
    start_processes(_share, work, count, start_method="forkserver")
    shares = [found.get() for _ in range(count)]
    seconds = max(end for _, end, _ in shares) - min(begin for begin, _, _ in shares)
    return {
        "milliseconds": [1e3 * cpu / each for _, _, cpu in shares],
        "rate": count * each / seconds,
    }


def _share(
    rank: int, count: int, each: int, model: Path, images: Path, out: Path, start: Any, found: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    tokenizer, split = genkit.load(model), all_images(str(images), (_RESOLUTION,) * 2, once=True)
    sizes: dict[str, Any] = {"batch_size": _BATCH, "shard_size": each}
    warm = Subset(split, range(2 * _BATCH))
    genkit.encode(tokenizer, warm, out / f"warm-{rank}", format="parquet", **sizes)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    ends = []
    start.wait()
    begin, before = time.time(), time.process_time()
    genkit.encode(
        tokenizer,
        split,
        out / "shards",
        format="parquet",
        progress=lambda done, total: ends.append(time.time()),
        **sizes,
    )
    # After its last row a process waits for the others.
    found.put((begin, ends[-1], time.process_time() - before))


def _on_ray(model: Path, images: Path, out: Path, count: int) -> dict[str, Any]:
    """Workers of the example, on a cluster of this machine with a CPU for each."""
    command = [sys.executable, "-m", "benchmarks.scale_on_ray", model, images, out, count]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True)
    files = [file.read_text(encoding="utf-8") for file in out.glob("*.jsonl")]
    return course([json.loads(line) for text in files for line in text.splitlines()])


def course(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The measurements of Ray's workers, without the first batch of each, which is slower.

    A line is a batch: its worker's `pid`, the `time` when it was done, its number of `images`, and
    the CPU seconds of the worker, `cpu`, and of the `driver` so far.
    """
    workers: dict[int, list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: float(line["time"])):
        workers.setdefault(line["pid"], []).append(line)
    begin = max(each[0]["time"] for each in workers.values())
    after = [line for line in lines if line["time"] > begin]
    drivers = [line["driver"] for line in lines]
    return {
        "milliseconds": [
            1e3 * (each[-1]["cpu"] - each[0]["cpu"]) / sum(line["images"] for line in each[1:])
            for each in workers.values()
            if len(each) > 1
        ],
        "rate": sum(line["images"] for line in after)
        / (max(line["time"] for line in after) - begin),
        "driver": max(drivers) - min(drivers),
    }


def page(figures: Mapping[str, Any]) -> str:
    """The section of docs/scale.md."""
    quick = " A quick look, not a measurement." if figures["quick"] else ""
    low, high = figures["loads"]
    long, short = figures["batches"]
    cores = figures["cores"]
    return "\n\n".join(
        [
            f"*{about(figures['machine'])}, {low:.1f} to {high:.1f} during it.{quick}*",
            f"**Measured: one and two processes on {cores} cores, by the clock.** Faces as JPEG "
            f"files {_SIDE} pixels high, the default model at {_RESOLUTION} pixels, untrained, "
            f"batches of {_BATCH}, one thread per process. Each process encodes {long} "
            "batches; loading and Ray's start are not counted. The ways took turns; brackets hold "
            "the lowest and the highest round. The last column is the CPU time of all processes of "
            "a row per second of the clock; less than their number means that they waited, or that "
            "other programs ran.",
            table(
                ("", "processes", "images per second", "times one process", "cores it got"),
                [row for way in WAYS for row in _measured(way, figures["measured"][way])],
            ),
            f"**Simulated: processes take turns on {cores} cores and are measured by their CPU "
            f"time,** with {short} batches each. The upper bound assumes one core per process, "
            "files that arrive in time, and no waiting. Ray's workers leave the writing to other "
            "processes, so their time does not include it.",
            table(
                ("", "processes", "CPU ms per image", "images per second, at most", "of linear"),
                [row for way in WAYS for row in _simulated(way, figures["simulated"][way])],
            ),
            "CPU seconds of Ray's driver, one process for all workers, during this: "
            f"{_drivers(figures['simulated']['Ray'])}.",
        ]
    )


_NAMES = {"genkit": "`genkit encode`", "Ray": "`examples/ray`"}


def _measured(way: str, found: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows = []
    alone = [each["rate"] for each in found["1"]]
    for count in _MEASURED:
        rates = [each["rate"] for each in found[str(count)]]
        times = [rate / one for rate, one in zip(rates, alone, strict=True)]
        # Each image takes the same CPU time in any process.
        cores = [
            each["rate"] * statistics.mean(each["milliseconds"]) / 1e3 for each in found[str(count)]
        ]
        spreads = cell(_range(rates), 1), cell(_range(times)), cell(_range(cores))
        rows.append((_NAMES[way], count, *spreads))
    return rows


def _range(values: Sequence[float]) -> dict[str, float]:
    """The median, and the bounds, of a few rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _simulated(way: str, found: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows = []
    for count in found:
        each, alone = (spread(found[key]["milliseconds"]) for key in (count, "1"))
        bound = f"{1e3 * int(count) / each['median']:,.0f}"
        share = f"{alone['median'] / each['median']:.0%}"
        rows.append((_NAMES[way], count, cell(each, 1), bound, share))
    return rows


def _drivers(found: Mapping[str, Any]) -> str:
    """The CPU seconds of the driver, for each number of workers."""
    return ", ".join(f"{each['driver']:.1f} with {count}" for count, each in found.items())
