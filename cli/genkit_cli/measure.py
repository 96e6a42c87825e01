"""Measuring a checkpoint, for every command that shows figures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

import click

import genkit
from genkit.errors import GenkitError
from genkit.files import printable
from genkit.records import SCHEMA, Watched
from genkit.registry import registry
from genkit_cli.data import evaluation_images, options_of, resolution_of

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--data",
        metavar="NAME_OR_FOLDER",
        help="What to evaluate on. [what it was trained on, held-out images]",
    ),
    click.option(
        "--split",
        type=click.Choice(["train", "heldout", "all"]),
        help="Which of the images. [held-out ones of what it was trained on, all of anything else]",
    ),
    click.option(
        "--images", type=click.IntRange(1), metavar="N", help="How many images at most. [all]"
    ),
    click.option(
        "--resolution",
        type=click.IntRange(1),
        metavar="N",
        help="Height and width of the images. [as in training]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=16,
        metavar="N",
        help="Images read and compared at a time; changes no figure. [16]",
    ),
)


def measuring(command: Command) -> Command:
    """Give a command the options of `Measurement`."""
    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


class Measurement:
    """A checkpoint and the images to measure it on, found without torch."""

    def __init__(
        self,
        checkpoint: str,
        data: str | None,
        split: str | None,
        images: int | None,
        resolution: int | None,
        batch_size: int,
    ) -> None:
        self.checkpoint, self.images, self.batch_size = checkpoint, images, batch_size
        self.info = genkit.inspect(checkpoint)
        size = resolution_of(self.info, resolution)
        dataset, self.data, split = evaluation_images(checkpoint, self.info, data, size, split)
        self.dataset = Watched(dataset)
        training = self.info["training"] or {}
        # Only training images depend on the run's seed.
        seed = {"seed": training.get("seed", 0)} if split == "train" else {}
        self.protocol: dict[str, Any] = {
            "data": self.data.name,
            "split": split,
            **seed,
            "resolution": size,
            "asked": images,
            "options": options_of(self.data),
            "fingerprint": dataset.fingerprint,
        }

    def record(self) -> dict[str, Any]:
        """The figures, and beside them all that says what they are of."""
        import torch

        from genkit.checkpoint import fingerprint
        from genkit.evaluation import ARITHMETIC, evaluate

        tokenizer = genkit.load(self.checkpoint)
        weights = fingerprint(tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        figures = evaluate(tokenizer.to(device), self.dataset, self.images, self.batch_size)
        if not math.isfinite(figures["psnr"]):
            raise GenkitError(
                f"'{self.checkpoint}' has no figures: what it makes of images are no finite "
                "numbers, so its training diverged; name an earlier checkpoint or another run"
            )
        owner = registry().owner("dataset", self.data.name)
        training = self.info["training"] or {}
        kind = str(next(tokenizer.parameters()).dtype).removeprefix("torch.")
        rounded = device == "cuda" and torch.backends.cudnn.allow_tf32
        return {
            "schema": SCHEMA,
            **figures,
            "protocol": {
                "evaluation": ARITHMETIC,
                **self.protocol,
                "found": figures["images"],
                **self.dataset.hashes(),
            },
            "unreadable": self.dataset.problems,
            "versions": {
                "genkit": genkit.__version__,
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in ("numpy", "pillow")},
                owner.distribution: owner.version,
            },
            "model": {
                "path": self.checkpoint,
                "fingerprint": weights,
                "components": self.info["components"],
                "training": {key: training.get(key) for key in ("step", "seed")},
            },
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "precision": f"{kind}, convolutions in tf32" if rounded else kind,
        }


def tell_unreadable(record: dict[str, Any], where: str = "") -> None:
    """Say on stderr which files were left out, if some were."""
    if problems := record.get("unreadable"):
        click.echo(
            f"{where}{len(problems)} files cannot be read and are left out, "
            f"first {printable(next(iter(problems)))}.",
            err=True,
        )
