"""Pictures for docs/generation.md: the rules of sampling, and completions.

    python -m benchmarks draws runs/faces-prior --labelled runs/hair --masked runs/masked

Every row of a picture draws the same seeds with another value of one rule. The values are printed
from the top to the bottom row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import genkit
from genkit.completion import half, kept_indices
from genkit.evaluation.images import evaluation_images
from genkit.images import from_pixels, picture_grid, save_png

DOCS = Path(__file__).parent.parent / "docs"
_COLUMNS = 8
RULES: dict[str, list[dict[str, Any]]] = {
    "temperature": [{"temperature": value} for value in (0.6, 0.8, 1.0, 1.2)],
    "top-p": [{"top_p": value} for value in (0.5, 0.8, 0.95, 1.0)],
}
GUIDANCE: list[dict[str, Any]] = [
    {"guidance": 1.0},
    {"guidance": 2.0},
    {"guidance": 4.0},
    {"guidance": 4.0, "guidance_schedule": "linear"},
]
STEPS: list[dict[str, Any]] = [{"steps": value} for value in (4, 8, 16, 24)]


def rows(prior: genkit.Prior, values: list[dict[str, Any]], **given: Any) -> Tensor:
    """A row of drawn images for each of the values."""
    return torch.cat([prior.generate(_COLUMNS, **given, **value) for value in values])


def completions(prior: genkit.Prior, run: Path) -> Tensor:
    """Held-out images, and beside each three completions of its left half."""
    images = evaluation_images(str(run), genkit.inspect(run), None, prior.size).images
    mask = half("left", *prior.size)
    shown = []
    for number in range(8):
        image = from_pixels(torch.from_numpy(images.images([number])))
        kept = kept_indices(prior, image, mask)
        shown += [image, prior.tokenizer.decode(prior.sample(3, kept=kept))]
    return torch.cat(shown)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--labelled", type=click.Path(path_type=Path), help="A prior with classes.")
@click.option("--masked", type=click.Path(path_type=Path), help="A masked prior.")
@click.option("--out", type=click.Path(path_type=Path), default=DOCS)
def main(run: Path, labelled: Path | None, masked: Path | None, out: Path) -> None:
    prior = genkit.load_prior(run)
    save_png(out / "drawn.png", picture_grid(prior.generate(36), 12, 1))
    save_png(out / "drawn-completed.png", picture_grid(completions(prior, run), height=1))
    pictures = {name: (prior, values, {}) for name, values in RULES.items()}
    if labelled:
        classes = [number % 7 for number in range(_COLUMNS)]
        pictures["guidance"] = (genkit.load_prior(labelled), GUIDANCE, {"classes": classes})
    if masked:
        pictures["steps"] = (genkit.load_prior(masked), STEPS, {})
    for name, (model, values, given) in pictures.items():
        save_png(out / f"drawn-{name}.png", picture_grid(rows(model, values, **given), height=1))
        click.echo(f"{name}: {values}")


if __name__ == "__main__":
    main()
