"""`genkit evaluate`."""

from __future__ import annotations

import json

import click

import genkit
from genkit_cli.data import codebook_text, evaluation_images, resolution_of


@click.command()
@click.argument("checkpoint")
@click.option(
    "--data",
    metavar="NAME_OR_FOLDER",
    help="What to evaluate on. [what it was trained on, held-out images]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "heldout", "all"]),
    help="Which of the images. [held-out ones of what it was trained on, all of anything else]",
)
@click.option(
    "--images", type=click.IntRange(1), metavar="N", help="How many images at most. [all]"
)
@click.option(
    "--resolution",
    type=click.IntRange(1),
    metavar="N",
    help="Height and width of the images. [as in training]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, metavar="N", help="Images at a time. [16]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    checkpoint: str,
    data: str | None,
    split: str | None,
    images: int | None,
    resolution: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Measure a checkpoint: PSNR, SSIM, MAE, MAE over variance, and the use of every level's codes.

    A folder is evaluated whole, unless it is the one that the checkpoint was trained on: then on
    its held-out files.
    """
    info = genkit.inspect(checkpoint)
    size = resolution_of(info, resolution)
    dataset, name, split = evaluation_images(checkpoint, info, data, size, split)

    import torch

    from genkit.evaluation import evaluate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = evaluate(genkit.load(checkpoint).to(device), dataset, images, batch_size)
    protocol = {
        "data": name,
        "split": split,
        "resolution": size,
        "fingerprint": dataset.fingerprint,
    }
    if as_json:
        click.echo(json.dumps({**figures, "protocol": protocol, "unreadable": dataset.problems}))
        return
    if dataset.problems:
        click.echo(
            f"{len(dataset.problems)} files cannot be read and are left out, "
            f"first {next(iter(dataset.problems))}.",
            err=True,
        )
    which = {"heldout": "held-out ", "train": "training "}.get(split, "")
    click.echo(
        f"{figures['images']} {which}images of {name} at {size} px, "
        f"{figures['bits_per_pixel']:.3f} bits per pixel"
    )
    ratio, ssim = (
        "-" if figures[name] is None else f"{figures[name]:.4f}"
        for name in ("mae_over_variance", "ssim")
    )
    click.echo(
        f"PSNR {figures['psnr']:.3f} dB   SSIM {ssim}   MAE {figures['mae']:.5f}   "
        f"MAE/variance {ratio}"
    )
    for index, level in enumerate(figures["levels"]):
        click.echo(
            f"level {index}: {level['active']} of {codebook_text(level)} codes in use "
            f"({level['usage']:.1%}), perplexity {level['perplexity']:.1f}"
        )
