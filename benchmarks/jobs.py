"""Trains and measures many configurations, several at a time, each in its own process.

Finished runs are not repeated: each run directory holds its figures and the settings they belong
to.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Takes a run directory and returns figures in addition to the evaluation's.
Measure = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A run: its name below the output folder, and layers of settings over presets."""

    name: str
    layers: Sequence[Mapping[str, Any]]
    preset: str | None = None
    measure: Measure | None = None


def run_all(jobs: Sequence[Job], out: Path, parallel: int) -> dict[str, dict[str, Any]]:
    """The figures of all jobs by name; `parallel` of them train at a time, on one thread each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # One new process per run, so that its peak memory is measured alone.
    with ProcessPoolExecutor(
        parallel, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        figures = list(pool.map(_figures, jobs, [out] * len(jobs)))
    return {job.name: each for job, each in zip(jobs, figures, strict=True)}


def _figures(job: Job, out: Path) -> dict[str, Any]:
    from genkit.run.options import layered, resolve_run
    from genkit.settings import settings_of

    run = resolve_run(layered(job.preset, *job.layers))
    directory, settings = out / job.name, settings_of(run)
    done = directory / "figures.json"
    if done.exists():
        figures: dict[str, Any] = json.loads(done.read_text())
        if figures["settings"] == settings:
            return figures
    shutil.rmtree(directory, ignore_errors=True)

    import torch

    import genkit
    from genkit.evaluation.metrics import evaluate
    from genkit.training.loop import Reporter, train
    from genkit.training.tokenizer import TokenizerTask

    # On one thread, CPU time measures a step independently of other load on the machine.
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    times = [clock()]

    class Stopwatch(Reporter):
        def advance(self, step: int) -> None:
            times.append(clock())

    train(TokenizerTask, run, directory, Stopwatch())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    training = run.data.build(run.size, run.seed).split("train")
    tokenizer = genkit.load(directory)
    figures = {
        # Every validation uses the same number of held-out images.
        **rows[-1]["validation"],
        "train": evaluate(tokenizer, training, 500)["levels"],
        "curve": [[row["step"], row["validation"]["psnr"]] for row in rows if "validation" in row],
        # The smallest usage in any interval between two rows of metrics.
        "least_usage": [
            min(row["levels"][level]["usage"] for row in rows)
            for level in range(len(tokenizer.levels))
        ],
        "seconds_a_step": statistics.median(b - a for a, b in itertools.pairwise(times)),
        "memory_mb": max(row["memory_mb"] for row in rows),
        "parameters": genkit.inspect(directory)["parameters"]["total"],
        **(job.measure(directory) if job.measure else {}),
        "settings": settings,
    }
    done.write_text(json.dumps(figures))
    shutil.rmtree(directory / "checkpoints")
    active = " ".join(str(level["active"]) for level in figures["levels"])
    print(f"{job.name}: {figures['psnr']:.2f} dB, codes {active}", flush=True)
    return figures


def fill(page: Path, name: str, text: str) -> None:
    """Put `text` between the page's marks `<!-- NAME -->` and `<!-- /NAME -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no marks {begin} {end}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± standard deviation` over seeds."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"
