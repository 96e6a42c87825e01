"""The claims of "Attentive VQ-VAE", measured: trains its models and fills in docs/paper.md.

\b
    python -m benchmarks paper --landscapes FOLDER                 # small sizes for a laptop's CPU
    python -m benchmarks paper --landscapes FOLDER --size paper    # the paper's sizes, for a GPU

Every model is trained with the same data, steps and seeds. Finished runs are not repeated.
`--only` fills in one part of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import genkit
from benchmarks.jobs import Job, fill, run_all, spread, table
from benchmarks.symmetry import PARTS, interval, symmetry
from genkit.captions import captioned
from genkit.images import from_pixels, grid, save_png, to_uint8
from genkit.run.options import layered, resolve_run

PAGE = Path(__file__).parent.parent / "docs" / "paper.md"
NORMS = ("logn", "div_n", "none")
# Name of a model: its preset and its attention's norm.
MODELS = {
    "H": ("h-vqvae", None),
    **{f"AH {norm}": ("ah-vqvae", norm) for norm in NORMS},
    **{f"A {norm}": ("a-vqvae", norm) for norm in NORMS},
}
# The presets' structure, but narrower and on patches of 2 x 2 pixels. The strides give images of 64
# pixels as many latents as the paper's strides give images of 128.
SMALL: dict[str, Any] = {
    "resolution": 64,
    "steps": 250,
    "lr": 1e-3,
    "warmup": 50,
    "mixed_precision": "bf16",
    "log_every": 25,
    "validate_every": 250,
    "validation_images": 512,
    "checkpoint_every": 250,
    "encoder": {
        "width": [16, 32, 64],
        "blocks": 1,
        "patch": 2,
        "base_stride": 2,
        "strides": [4, 8],
        "base_channels": 64,
        "latent_channels": 64,
    },
    "decoder": {"width": [16, 32, 64], "blocks": 1, "patch": 2},
}
SMALL_PATCHGAN: dict[str, Any] = {
    "discriminator": {"width": [32, 32, 32, 16, 16]},
    "discriminator_lr": 2e-4,
    "discriminator_start": 50,
    "discriminator_head_start": 0,
    "discriminator_ramp": 100,
}
PAPER: dict[str, Any] = {
    "resolution": 256,
    "steps": 20_000,
    "mixed_precision": "bf16",
    "validate_every": 20_000,
    "validation_images": 1024,
}
PAPER_PATCHGAN: dict[str, Any] = {
    "discriminator_start": 2000,
    "discriminator_head_start": 0,
    "discriminator_ramp": 2000,
}
# The original quantizer (2017): EMA codes with a random start and no revival.
NO_CURES = {"kmeans_start": False, "revive": 0.0}


class Grid:
    """The runs of one size, on one machine."""

    def __init__(self, size: str, landscapes: str, seeds: int, out: Path, jobs: int) -> None:
        self.small = size == "small"
        self.seeds, self.out, self.jobs = range(seeds), out / size, jobs
        self.data: dict[str, dict[str, Any]] = {
            "faces": {"name": "faces", "heldout": 512},
            "landscapes": {
                "name": "folder",
                "location": str(Path(landscapes).resolve()),
                "short_side": 128 if self.small else 256,
                "crops": 8,
            },
        }

    def job(
        self, model: str, data: str, seed: int, *, patchgan: bool = False, cures: bool = True
    ) -> Job:
        """The run of one model on one data set with one seed."""
        preset, norm = MODELS[model]
        layers = [SMALL if self.small else PAPER, {"data": self.data[data], "seed": seed}]
        if norm:
            attention = {"name": "pixel", "norm": norm, "dim": 24 if self.small else 96}
            layers.append({"encoder": {"attention": attention}})
        if patchgan:
            layers.append(SMALL_PATCHGAN if self.small else PAPER_PATCHGAN)
            preset += ",paper-patchgan"
        if not cures:
            layers.append({"quantizer": NO_CURES})
        name = f"{data}/{model.replace(' ', '-')}{'-gan' * patchgan}{'' if cures else '-2017'}"
        measure = symmetry if data == "faces" and cures else None
        return Job(f"{name}/{seed}", layers, preset, measure)

    def run(self, models: Sequence[str], data: str, **options: bool) -> dict[str, list[Any]]:
        """The figures of models, with one entry per seed."""
        jobs = {m: [self.job(m, data, seed, **options) for seed in self.seeds] for m in models}
        figures = run_all([job for each in jobs.values() for job in each], self.out, self.jobs)
        return {m: [figures[job.name] for job in each] for m, each in jobs.items()}

    def directories(self, model: str, data: str, **options: bool) -> list[Path]:
        """The run directories of a model, one per seed."""
        return [self.out / self.job(model, data, seed, **options).name for seed in self.seeds]


def claims(grid_: Grid) -> None:
    """Quality, code usage, size, time and memory of every model."""
    for data in grid_.data:
        for patchgan in (False, True):
            figures = grid_.run(list(MODELS), data, patchgan=patchgan)
            rows = []
            for model, runs in figures.items():
                levels = range(len(runs[0]["levels"]))
                rows.append(
                    [
                        model,
                        *(
                            spread([run[name] for run in runs], digits)
                            for name, digits in (
                                ("psnr", 2),
                                ("ssim", 3),
                                ("mae", 4),
                                ("mae_over_variance", 3),
                            )
                        ),
                        " / ".join(
                            spread([run["levels"][level]["active"] for run in runs], 0)
                            for level in levels
                        ),
                        " / ".join(
                            spread([run["levels"][level]["perplexity"] for run in runs], 0)
                            for level in levels
                        ),
                        f"{runs[0]['parameters']:,}",
                        spread([1000 * run["seconds_a_step"] for run in runs], 0),
                        f"{max(run['memory_mb'] for run in runs):,.0f}",
                    ]
                )
            header = ["model", "PSNR", "SSIM", "MAE", "MAE/var", "active", "perplexity"]
            text = table([*header, "parameters", "ms/step", "MB"], rows)
            fill(PAGE, f"claims-{data}{'-patchgan' if patchgan else ''}", text)
    pictures(grid_)


def pictures(grid_: Grid) -> None:
    """`docs/paper-faces.png`: held-out faces, one row per model; the photographs are not ours."""
    resolution = (SMALL if grid_.small else PAPER)["resolution"]
    data = resolve_run(layered(None, {"data": grid_.data["faces"]})).data
    images = data.build((resolution, resolution), 0).split("heldout")
    chosen = images.images([len(images) // 10 * i for i in range(10)])
    rows, labels = [chosen], ["original"]
    for model in ("H", "AH logn", "AH none", "A logn"):
        for patchgan in (False, True):
            directory = grid_.directories(model, "faces", patchgan=patchgan)[0]
            labels.append(f"{model}, PatchGAN" if patchgan else model)
            with torch.no_grad():
                rows.append(to_uint8(genkit.load(directory)(from_pixels(chosen)).images))
    times = max(1, 128 // resolution)
    larger = [row.repeat(times, 1).repeat(times, 2) for row in rows]
    words = "Held-out faces over their reconstructions by each model"
    save_png(PAGE.parent / "paper-faces.png", captioned(grid(larger), words, labels))


def symmetries(grid_: Grid) -> None:
    """Errors of reconstructions in the left-right differences of faces."""
    models = list(MODELS)
    figures = grid_.run(models, "faces")
    rows = []
    for model in models:
        cells = [
            spread([run["symmetry"][f"{kind}_{part}"] for run in figures[model]])
            for part in PARTS
            for kind in ("symmetry", "colour")
        ]
        rows.append([model, *cells])
    header = [f"{part}, {kind}" for part in PARTS for kind in ("left-right", "colour")]
    differences = []
    for model in models[1:]:
        cells = []
        for part in PARTS:
            mean, low, high = interval(
                grid_.directories(model, "faces"),
                grid_.directories("H", "faces"),
                f"symmetry_{part}",
            )
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        differences.append([f"{model} − H", *cells])
    fill(
        PAGE,
        "symmetry",
        table(["model", *header], rows) + "\n\n" + table(["left-right error", *PARTS], differences),
    )


def collapse(grid_: Grid) -> None:
    """The hierarchy on photographs with the original quantizer (2017) and with ours."""
    rows = []
    for cures in (False, True):
        figures = grid_.run(["H", "AH logn", "AH none"], "landscapes", cures=cures)
        for model, runs in figures.items():
            active = [
                spread([run[which][level]["active"] for run in runs], 0)
                for which in ("train", "levels")
                for level in (0, 1)
            ]
            perplexity = [
                spread([run["levels"][level]["perplexity"] for run in runs], 0) for level in (0, 1)
            ]
            which = "k-means and revival" if cures else "2017"
            rows.append([which, model, spread([run["psnr"] for run in runs]), *active, *perplexity])
    header = ["quantizer", "model", "PSNR", "training, fine", "coarse", "held-out, fine", "coarse"]
    fill(PAGE, "collapse", table([*header, "perplexity, fine", "coarse"], rows))


PARTS_OF_THE_PAGE = {"claims": claims, "symmetry": symmetries, "collapse": collapse}


@click.command(help=__doc__)
@click.option(
    "--landscapes", required=True, type=click.Path(exists=True), help="Folder of landscape images."
)
@click.option(
    "--size",
    type=click.Choice(["small", "paper"]),
    default="small",
    show_default=True,
    help="Size of models and images.",
)
@click.option("--seeds", default=3, show_default=True, help="Runs per configuration.")
@click.option("--jobs", default=2, show_default=True, help="Parallel runs, one thread each.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/paper"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option(
    "--only",
    type=click.Choice(list(PARTS_OF_THE_PAGE)),
    multiple=True,
    help="Parts to fill in; all by default.",
)
def main(landscapes: str, size: str, seeds: int, jobs: int, out: Path, only: Sequence[str]) -> None:
    np.set_printoptions(precision=3)
    runs = Grid(size, landscapes, seeds, out, jobs)
    for name, part in PARTS_OF_THE_PAGE.items():
        if not only or name in only:
            part(runs)
