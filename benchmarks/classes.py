"""Whether drawn images have the classes that were asked for, by a classifier of real images.

    python -m benchmarks classes runs/hair --number 200 --guidance 2

The classifier is a small network, trained on the training images of the prior's data set, as the
tokenizer reconstructs them. It prints its accuracy on held-out images, and the share of drawn
images that it finds in the class that was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import genkit
from genkit.evaluation.images import evaluation_images
from genkit.images import from_pixels
from genkit.interfaces import Split

_BATCH = 64


def network(channels: int, classes: int) -> nn.Module:
    """Convolutions that halve the image four times, and a linear layer."""
    layers: list[nn.Module] = []
    for inward, outward in ((channels, 24), (24, 48), (48, 96), (96, 96)):
        layers += [
            nn.Conv2d(inward, outward, 3, 2, 1),
            nn.BatchNorm2d(outward),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(384, classes))


def seen(prior: Any, split: Split, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Reconstructions and classes of images of a split."""
    images = from_pixels(torch.from_numpy(split.images(numbers)))
    made = prior.tokenizer.decode(prior.tokenizer.encode(images))
    labels = [split.label(number) for number in numbers]
    return made, torch.tensor([-1 if label is None else label for label in labels])


def train(prior: Any, split: Split, images: int, steps: int) -> nn.Module:
    """A classifier of the split's images."""
    torch.manual_seed(0)
    numbers = np.random.default_rng(0).permutation(len(split))[:images].tolist()
    parts = [seen(prior, split, numbers[n : n + _BATCH]) for n in range(0, len(numbers), _BATCH)]
    pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    model = network(prior.tokenizer.channels, len(prior.classes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (_BATCH,))
        F.cross_entropy(model(pictures[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def right(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """The number of images that the classifier finds in their class."""
    return int((model(images).argmax(1) == labels).sum())


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--number", default=200, show_default=True, help="Images drawn.")
@click.option("--guidance", multiple=True, type=float, default=(1.0, 2.0), show_default=True)
@click.option("--images", default=6000, show_default=True, help="Training images.")
@click.option("--steps", default=600, show_default=True, help="Steps of the classifier.")
@click.option("--seed", default=0, show_default=True)
def main(
    run: Path, number: int, guidance: tuple[float, ...], images: int, steps: int, seed: int
) -> None:
    prior = genkit.load_prior(run)
    if not prior.classes:
        raise click.ClickException(f"{run} was trained without classes")
    info = genkit.inspect(run)

    def split(name: str | None) -> Split:
        return evaluation_images(str(run), info, None, prior.size, name).images

    model = train(prior, split("train"), images, steps)
    heldout = split(None)
    count = min(1000, len(heldout))
    with torch.no_grad():
        found = sum(
            right(model, *seen(prior, heldout, list(range(n, min(n + _BATCH, count)))))
            for n in range(0, count, _BATCH)
        )
        click.echo(f"the classifier: {found / count:.1%} of {count} held-out images")
        asked = [image % len(prior.classes) for image in range(number)]
        for each in guidance:
            drawn = prior.generate(number, seed=seed, classes=asked, guidance=each)
            share = right(model, drawn, torch.tensor(asked)) / number
            click.echo(f"guidance {each:g}: {share:.1%} of {number} drawn images")


if __name__ == "__main__":
    main()
