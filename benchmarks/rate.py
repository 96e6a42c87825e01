"""Quality per bit: PSNR against bits per pixel at equal training time, and protocol P64.

    python -m benchmarks rate --train FOLDER --test FOLDER

`--train` and `--test` are folders of 64-pixel crops. Every model trains for the same time on one
thread; the number of steps is measured first. Fills in docs/paper.md and draws its curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt

from benchmarks.jobs import Job, fill, run_all, spread, table
from benchmarks.paper import PAGE

Settings = dict[str, Any]

# The original VQ-VAE (2017), built from our components.
BASELINE: Settings = {
    "encoder": {"levels": 1, "attention": "none", "norm": "batch"},
    "decoder": {"norm": "batch"},
    "quantizer": {"kmeans_start": False, "revive": 0.0},
    "optimizer": "adam",
    "ema": 0.0,
}


def default(levels: int, codes: int) -> tuple[Settings, ...]:
    """The default model with this number of levels, and of codes per level."""
    return {"encoder": {"levels": levels, "attention": "pixel"}}, codebook(codes)


def codebook(codes: int) -> Settings:
    """Settings for this number of codes per level."""
    return {"quantizer": {"codebook_size": codes}}


# Layers of settings; later ones override earlier ones.
MODELS: dict[str, tuple[Settings, ...]] = {
    "1 level, 512": default(1, 512),
    "2 levels, 128": default(2, 128),
    "2 levels, 512": default(2, 512),
    "2 levels, 2048": default(2, 2048),
    "3 levels, 512": default(3, 512),
    "plain VQ-VAE, 512": (BASELINE, codebook(512)),
    "plain VQ-VAE, 2048": (BASELINE, codebook(2048)),
}
# Changes to the default model with two levels of 512 codes.
VARIANTS: dict[str, Settings] = {
    "the default": {},
    "rotation trick": {"quantizer": {"gradient": "rotation"}},
    "entropy term 0.1": {"quantizer": {"entropy_weight": 0.1}},
    "8 normalised channels": {"quantizer": {"codebook_dim": 8, "distance": "cosine"}},
    "linear codebook": {"quantizer": {"update": "linear"}},
    "no k-means start": {"quantizer": {"kmeans_start": False}},
    "no revival": {"quantizer": {"revive": 0.0}},
    "neither": {"quantizer": {"kmeans_start": False, "revive": 0.0}},
    "no attention": {"encoder": {"attention": "none"}},
    "decoder sees the finest": {"decoder": {"sees": "finest"}},
    "batch norm": {
        "encoder": {"norm": "batch"},
        "fusion": {"norm": "batch"},
        "decoder": {"norm": "batch"},
    },
    "Adam": {"optimizer": "adam"},
    "L1": {"reconstruction": "l1"},
}


class Bench:
    """Runs on one set of crops."""

    def __init__(self, train: Path, test: Path, out: Path, jobs: int) -> None:
        self.out, self.jobs = out, jobs
        data = {
            "name": "folder",
            "location": str(train.resolve()),
            "heldout_folder": str(test.resolve()),
        }
        self.common: Settings = {
            "data": data,
            "mixed_precision": "bf16",
            "validation_images": 1000,
            "checkpoint_every": 10**6,
        }

    def run(
        self, models: dict[str, tuple[Settings, ...]], **options: Any
    ) -> dict[str, dict[str, Any]]:
        """The figures of models trained with the same options."""
        jobs = [
            Job(self._slug(name, options), (self.common, *layers, options))
            for name, layers in models.items()
        ]
        figures = run_all(jobs, self.out, self.jobs)
        return {name: figures[job.name] for name, job in zip(models, jobs, strict=True)}

    def steps(self, models: dict[str, tuple[Settings, ...]], seconds: float) -> dict[str, int]:
        """The number of steps that each model makes in `seconds`, estimated from 40 steps."""
        figures = self.run(models, steps=40, log_every=10, validate_every=40)
        return {
            name: max(50, round(seconds / each["seconds_a_step"])) for name, each in figures.items()
        }

    def _slug(self, name: str, options: dict[str, Any]) -> str:
        kind = "-".join(f"{key}{value}" for key, value in options.items() if key != "log_every")
        return f"{name.replace(' ', '-').replace(',', '')}/{kind}"


def levels_of(figures: dict[str, Any], what: str) -> str:
    """A figure per level, the finest first."""
    return " / ".join(f"{level[what]:.0f}" for level in figures["levels"])


def rate(bench: Bench, seconds: float) -> None:
    """PSNR against bits per pixel, with equal training time for every model."""
    counts = bench.steps(MODELS, seconds)
    rows, points = [], {}
    for name, layers in MODELS.items():
        steps = counts[name]
        figures = bench.run({name: layers}, steps=steps, validate_every=steps)[name]
        points[name] = figures["bits_per_pixel"], figures["psnr"]
        rows.append(
            [
                name,
                f"{figures['bits_per_pixel']:.3f}",
                f"{figures['psnr']:.2f}",
                f"{figures['ssim']:.3f}",
                levels_of(figures, "active"),
                levels_of(figures, "perplexity"),
                str(steps),
            ]
        )
    header = ["model", "bits per pixel", "PSNR", "SSIM", "active", "perplexity", "steps"]
    fill(PAGE, "rate", table(header, rows))
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for prefix in ("1 level", "2 levels", "3 levels", "plain"):
        line = sorted(point for name, point in points.items() if name.startswith(prefix))
        axes.plot(*zip(*line, strict=True), "o-", label=prefix.replace("plain", "plain VQ-VAE"))
    axes.set(xlabel="bits per pixel", ylabel="PSNR on held-out crops (dB)")
    _save(figure, axes, "paper-rate.png")


def p64(bench: Bench) -> None:
    """The default model at 250 to 1,000 steps."""
    lengths = (250, 500, 1000)
    rows = []
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for steps in lengths:
        figures = bench.run({"default": default(2, 512)}, steps=steps, validate_every=50)["default"]
        seconds = steps * figures["seconds_a_step"]
        way = figures["curve"]
        axes.plot(*zip(*way, strict=True), "-", label=f"default, a run of {steps} steps")
        rows.append(
            [
                str(steps),
                f"{figures['psnr']:.2f}",
                f"{figures['ssim']:.3f}",
                levels_of(figures, "active"),
                " / ".join(f"{usage:.0%}" for usage in figures["least_usage"]),
                f"{seconds:.0f}",
            ]
        )
    header = ["steps", "PSNR", "SSIM", "active", "least usage in 20 steps", "seconds"]
    fill(PAGE, "p64", table(header, rows))
    axes.plot(lengths, (25.0, 26.3, 27.0), "ks--", label="strongest peer")
    axes.set(xlabel="steps of 16 crops", ylabel="PSNR on held-out crops (dB)", ylim=(20, None))
    _save(figure, axes, "paper-p64.png")


def parts(bench: Bench) -> None:
    """The default model with one part replaced at a time, after 200 steps."""
    models = {name: (*default(2, 512), settings) for name, settings in VARIANTS.items()}
    rows = []
    for name, figures in bench.run(models, steps=200, validate_every=50).items():
        train = " / ".join(f"{level['usage']:.0%}" for level in figures["train"])
        rows.append(
            [
                name,
                spread([figures["psnr"]]),
                train,
                " / ".join(f"{level['usage']:.0%}" for level in figures["levels"]),
                " / ".join(f"{usage:.0%}" for usage in figures["least_usage"]),
                levels_of(figures, "perplexity"),
                f"{1000 * figures['seconds_a_step']:.0f}",
            ]
        )
    header = ["", "PSNR", "usage, training", "held-out", "least in 20 steps", "perplexity"]
    fill(PAGE, "parts", table([*header, "ms/step"], rows))


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(PAGE.parent / name, dpi=110)


@click.command(help=__doc__)
@click.option(
    "--train",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder of training crops.",
)
@click.option(
    "--test",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder of test crops.",
)
@click.option("--seconds", default=60.0, show_default=True, help="Training time per model.")
@click.option("--jobs", default=2, show_default=True, help="Parallel runs, one thread each.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/rate"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option(
    "--only",
    type=click.Choice(["rate", "p64", "parts"]),
    multiple=True,
    help="Tables to fill in; all by default.",
)
def main(
    train: Path, test: Path, seconds: float, jobs: int, out: Path, only: Sequence[str]
) -> None:
    bench = Bench(train, test, out, jobs)
    if not only or "p64" in only:
        p64(bench)
    if not only or "parts" in only:
        parts(bench)
    if not only or "rate" in only:
        rate(bench, seconds)
