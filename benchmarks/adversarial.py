"""The effect of a discriminator: at equal steps, and as post-training of the decoder.

    python -m benchmarks adversarial --landscapes FOLDER --weights FILE --jobs 2

`--landscapes` is a folder of photographs, `--weights` MobileNetV2's file, for the perceptual loss.
Reconstructions of unseen crops are compared with them by the features of another network,
EfficientNet-Lite0 (extra `features`). Fills in docs/recipes.md; pictures go to the output folder.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import genkit
from benchmarks.jobs import Job, fill, run_all, spread, table
from genkit.evaluation.images import evaluation_images
from genkit.evaluation.measurement import Measurement
from genkit.images import from_pixels, picture_grid, save_png

Settings = dict[str, Any]

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
SEEDS = range(3)
# Crops of each held-out photograph that are measured. A Fréchet distance of EfficientNet-Lite0's
# features needs 1,280 images; it is measured for the first seed alone.
_CROPS, _MANY = 16, 44
# Batches with the same number of pixels at each resolution.
_BATCH = {64: 16, 128: 4}
FIGURES = ("psnr", "ssim", "distances_kid", "distances_kid_error")


class Bench:
    """Training runs on crops of one resolution."""

    def __init__(self, landscapes: Path, weights: Path, resolution: int, out: Path) -> None:
        self.resolution, self.out = resolution, out / str(resolution)
        self.landscapes = str(landscapes.resolve())
        self.network = {"name": "timm", "weights": str(weights.resolve())}

    def job(self, name: str, seed: int, steps: int, **more: Any) -> Job:
        """A run of this name and seed; `more` settings come on top."""
        data = {"name": "folder", "location": self.landscapes, "crops": 8}
        common: Settings = {
            "data": {**data, "short_side": 2 * self.resolution},
            "resolution": self.resolution,
            "batch_size": _BATCH[self.resolution],
            "perceptual": self.network,
            "mixed_precision": "bf16",
            "checkpoint_every": 10**6,
            "validate_every": 10**6,
            "seed": seed,
            "steps": steps,
        }
        preset = "adversarial" if "discriminator" in more else None
        return Job(f"{name}-{seed}", (common, more), preset, partial(self.measure, seed))

    def measure(self, seed: int, directory: Path) -> dict[str, Any]:
        """Figures of crops of the held-out photographs."""
        figures = self.record(directory, "kid", _CROPS)
        found = {name: figures[name] for name in FIGURES}
        if seed == SEEDS[0]:
            found["fd"] = self.record(directory, "fd", _MANY)["distances_fd"]
        return {"measured": found}

    def record(self, directory: Path, figure: str, crops: int) -> dict[str, Any]:
        """The figures of a model on this number of crops of each held-out photograph."""
        data = f"{self.landscapes}?short_side={2 * self.resolution}&crops={crops}"
        metric = f"distances?figures={figure}"
        return Measurement(
            str(directory), data, "heldout", metrics=[metric], mixed_precision="bf16"
        ).record()

    def run(self, steps: int, more: int, jobs: int) -> dict[str, list[dict[str, Any]]]:
        """The figures of each row of the table, one entry for each seed."""
        judge: Settings = {"discriminator": self.network}
        first = [
            self.job(name, seed, steps, **settings)
            for seed in SEEDS
            for name, settings in (
                ("without", {}),
                ("with", {**judge, "discriminator_start": steps // 2}),
            )
        ]
        found = run_all(first, self.out, jobs)
        second = [
            self.job(
                f"decoder-{name}",
                seed,
                more,
                from_=str((self.out / f"without-{seed}").resolve()),
                trainable=["decoder"],
                lr=2e-4,
                **settings,
            )
            for seed in SEEDS
            for name, settings in (("without", {}), ("with", judge))
        ]
        found |= run_all(second, self.out, jobs)
        names = "without", "with", "decoder-without", "decoder-with"
        return {name: [found[f"{name}-{seed}"]["measured"] for seed in SEEDS] for name in names}


def text_of(name: str, steps: int, more: int) -> str:
    """The first column of a row."""
    part, _, last = name.rpartition("-")
    start = f"{steps} steps, then {more} of the decoder" if part else f"{steps} steps"
    return f"{start}, {last} a discriminator"


def rows(found: dict[str, list[dict[str, Any]]], name_of: Callable[[str], str]) -> list[list[str]]:
    """Means and standard deviations over seeds."""
    result = []
    for name, figures in found.items():
        each = {key: [figure[key] for figure in figures] for key in FIGURES}
        error = statistics.mean(each["distances_kid_error"])
        result.append(
            [
                name_of(name),
                spread(each["psnr"]),
                spread(each["ssim"], 4),
                spread(each["distances_kid"], 4),
                f"{error:.4f}",
                f"{figures[0]['fd']:.1f}",
            ]
        )
    return result


def picture(bench: Bench, names: Sequence[str]) -> None:
    """Held-out crops, and below them what the models of the first seed make of them."""
    size = bench.resolution, bench.resolution
    run = str(bench.out / f"{names[0]}-0")
    split = evaluation_images(run, genkit.inspect(run), None, size).images
    images = from_pixels(torch.from_numpy(split.images(range(1, len(split), len(split) // 8))))[:8]
    shown = [images]
    with torch.no_grad():
        for name in names:
            tokenizer = genkit.load(bench.out / f"{name}-0")
            shown.append(tokenizer(images).images.clamp(-1, 1))
    save_png(bench.out / "pictures.png", picture_grid(torch.cat(shown), 8))


HEAD = "training", "PSNR, dB", "SSIM", "KID", "error of KID", "FD"


@click.command(help=__doc__)
@click.option("--landscapes", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--weights", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--resolution", type=click.Choice(["64", "128"]), multiple=True, help="[both]")
@click.option("--steps", type=int, default=500, show_default=True)
@click.option("--more", type=int, default=250, show_default=True, help="Steps of post-training.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/adversarial"), show_default=True
)
def main(
    landscapes: Path,
    weights: Path,
    resolution: tuple[str, ...],
    steps: int,
    more: int,
    jobs: int,
    out: Path,
) -> None:
    for size in map(int, resolution or ("64", "128")):
        bench = Bench(landscapes, weights, size, out)
        found = bench.run(steps, more, jobs)
        fill(
            PAGE,
            f"recipe-{size}",
            table(HEAD, rows(found, lambda name: text_of(name, steps, more))),
        )
        picture(bench, list(found))
        click.echo(f"{PAGE}: {size} px is filled in")


if __name__ == "__main__":
    main()
