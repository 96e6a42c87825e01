"""Time to quality: seconds of training until the test crops of protocol P64 reach a PSNR."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import table
from benchmarks.speed import ours, peers
from benchmarks.speed.timing import Settings
from genkit.data.order import DrawSampler
from genkit.data.reading import batches, read_varied
from genkit.evaluation.metrics import psnr
from genkit.images import from_pixels
from genkit.run.options import TokenizerRun, layered, resolve_run

TITLE = "Time to quality"
# A folder with `train` and `test`: 5,304 and 156 crops of 64 pixels; see docs/paper.md.
VARIABLE = "GENKIT_P64"
TARGETS = (25, 26, 27, 28, 29, 30)
# Seconds of training. Our learning rate falls until the end of a run, so each length needs its own
# run.
LENGTHS = (60.0, 240.0)
EVERY = 25

# Steps, seconds and PSNR of every evaluation.
Curve = list[tuple[int, float, float]]
OURS: dict[str, dict[str, Any]] = {
    "genkit, bf16": {**ours.DEFAULT, "mixed_precision": "bf16"},
    "genkit": ours.DEFAULT,
    "genkit, as large as VQ-VAE-2": ours.SAME_SIZE,
}
PEERS = ("VQ-VAE-2, library's quantizer", "VQ-VAE-2 as published")


def measure(settings: Settings) -> dict[str, Any]:
    if VARIABLE not in os.environ:
        return {"missing": f"{VARIABLE} names no folder with the crops of protocol P64"}
    lengths = (5.0,) if settings.quick else LENGTHS
    every = 5 if settings.quick else EVERY
    found = {}
    for name, curve in curves(Path(os.environ[VARIABLE]), lengths, every):
        print(f"{name}: {curve[-1][2]:.2f} dB", file=sys.stderr, flush=True)
        found[name] = curve
    return {
        "every": every,
        "curves": found,
        "left_out": [name for name in PEERS if name in peers.left_out()],
    }


def curves(folder: Path, lengths: tuple[float, ...], every: int) -> Iterator[tuple[str, Curve]]:
    """Each model's curve when it is done; every model is trained in its own process."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        threads = torch.get_num_threads()
        for name in PEERS:
            if name in peers.peers():
                yield name, pool.submit(of_peer, name, folder, lengths[-1], every, threads).result()
        for name, length in itertools.product(OURS, lengths):
            way = pool.submit(of_ours, OURS[name], folder, length, every, threads).result()
            yield f"{name}, {length:.0f} s", way


def of_peer(name: str, folder: Path, seconds: float, every: int, threads: int) -> Curve:
    """Train a peer as published: batches of 16, flips, Adam 3e-4, float32."""
    torch.set_num_threads(threads)
    run, device = _run(folder, {"steps": 10**6}), ours.device()
    images = run.data.build(run.size, run.seed)
    data, test = images.split("train"), images.split("heldout")
    torch.manual_seed(0)
    step = peers.PeerStep(peers.peers()[name]().to(device))
    spent, curve = 0.0, []
    for done, draws in enumerate(DrawSampler(run, len(data), 0, 1, 0), 1):
        start = ours.clock()
        indices, seeds = zip(*draws, strict=True)
        step(from_pixels(torch.from_numpy(read_varied(data, indices, seeds)).to(device)))
        spent += ours.clock() - start
        if done % every == 0 or spent >= seconds:
            step.model.eval()
            with torch.no_grad():
                found = [psnr(x, step.model(x)[0]) for _, x in batches(test, len(test), 52, device)]
            step.model.train()
            curve.append((done, spent, float(torch.cat(found).mean())))
        if spent >= seconds:
            break
    return curve


def of_ours(
    settings: Mapping[str, Any], folder: Path, seconds: float, every: int, threads: int
) -> Curve:
    """Train ours with `genkit train` for as many steps as fit into `seconds`.

    A step with an evaluation of the test crops counts as the median step.
    """
    torch.set_num_threads(threads)
    short = ours.timed(_run(folder, {**settings, "steps": 8}))
    steps = max(2, round(seconds / statistics.median(short.seconds[2:])))
    run = _run(folder, {**settings, "steps": steps})
    found = ours.timed(replace(run, log_every=every, validate_every=every))
    looked = {row["step"]: row["validation"]["psnr"] for row in found.rows if "validation" in row}
    usual = statistics.median(found.seconds)
    spent = itertools.accumulate(
        usual if step in looked else each for step, each in enumerate(found.seconds, 1)
    )
    return [(step, each, looked[step]) for step, each in enumerate(spent, 1) if step in looked]


def _run(folder: Path, settings: Mapping[str, Any]) -> TokenizerRun:
    data = {
        "name": "folder",
        "location": str((folder / "train").resolve()),
        "heldout_folder": str((folder / "test").resolve()),
    }
    whole = {"data": data, "checkpoint_every": 10**6, "validation_images": 10**6}
    return resolve_run(layered(None, whole, settings))


def reached(curve: Curve, target: float) -> float | None:
    """Seconds until the curve first reaches a PSNR."""
    return next((seconds for _, seconds, psnr in curve if psnr >= target), None)


def page(figures: dict[str, Any], folder: Path) -> str:
    if "missing" in figures:
        return f"Not measured: {figures['missing']}."
    curves: dict[str, Curve] = figures["curves"]
    rows = []
    for name, curve in curves.items():
        seconds = [reached(curve, target) for target in TARGETS]
        cells = ["–" if each is None else f"{each:.0f}" for each in seconds]
        steps, spent, psnr = curve[-1]
        rows.append([name, *cells, f"{psnr:.2f} dB, {steps} steps, {spent:.0f} s"])
    _draw(curves, folder / "quality.png")
    return "\n\n".join(
        [
            "Seconds of training until the mean PSNR of the 156 test crops of protocol P64 first "
            f"reached each target. It is checked every {figures['every']} steps, and the time of "
            "the checks is excluded. Batches are 16 crops of 64 pixels with horizontal flips; 0.70 "
            "bits per pixel. genkit uses the command's defaults in a run of as many steps as fit "
            "into the time that its name states. The others use their own training, Adam 3e-4 in "
            "float32, and keep no average of weights that could be evaluated instead.",
            table(["", *(f"{target} dB" for target in TARGETS), "at the end"], rows),
            *(f"Not installed, so not measured: {name}." for name in figures["left_out"]),
            "![PSNR against seconds of training](performance/quality.png)",
        ]
    )


def _draw(curves: Mapping[str, Curve], place: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6))
    for name, curve in curves.items():
        _, seconds, psnr = zip(*curve, strict=True)
        axes.plot(seconds, psnr, "-" if name.startswith("genkit") else "--", label=name)
    axes.set(xlabel="seconds of training", ylabel="PSNR of the test crops (dB)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(place, dpi=110)
    plt.close(figure)
