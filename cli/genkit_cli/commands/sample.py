"""`genkit sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import genkit
from genkit.devices import own_device
from genkit.errors import OptionError
from genkit_cli.complete import files
from genkit_cli.explain import Option
from genkit_cli.options import (
    all_of,
    batch_size_option,
    computing,
    image_format_option,
    out_option,
    processes_option,
    tell_format,
)
from genkit_cli.terminal import counted

# Images that --nearest compares.
_COMPARED = 16
_RULES = all_of(
    click.option("--temperature", type=float, metavar="F", help="Temperature of the draw. [1]"),
    click.option(
        "--top-k", type=int, metavar="N", help="Draw from the N most likely codes; 0 is off. [0]"
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="F",
        help="Draw from the most likely codes that have a probability of F together; 1 is off. [1]",
    ),
    click.option(
        "--guidance",
        cls=Option,
        also=("cfg_scale", "guidance_scale", "cfg"),
        type=float,
        metavar="F",
        help="Classifier-free guidance u + F (c - u) of logits with and without the condition; "
        "1 is off. [1]",
    ),
    click.option(
        "--guidance-schedule",
        type=click.Choice(["constant", "linear", "cosine"]),
        help="Guidance over the image: constant, or rising from 1. [constant]",
    ),
    click.option(
        "--guidance-power", type=float, metavar="F", help="Power of the cosine schedule. [1]"
    ),
    click.option(
        "--steps", type=int, metavar="N", help="Passes of a masked prior. [the prior's own]"
    ),
    click.option(
        "--noise",
        type=float,
        metavar="F",
        help="Noise on the confidence of a masked prior. [the prior's own]",
    ),
)


@click.command()
@click.argument("prior", shell_complete=files)
@click.option(
    "--number",
    cls=Option,
    also=("num_samples", "num_images", "n_samples", "n"),
    type=click.IntRange(1),
    metavar="N",
    help="Number of images. [16]",
)
@out_option("DIR", "Folder for the pictures, the grid and the indices.")
@click.option(
    "--classes",
    cls=Option,
    also=("class_labels", "labels", "label"),
    metavar="NAME,…",
    help="Classes to draw in turn, by number or name.",
)
@click.option("--per-class", type=click.IntRange(1), metavar="N", help="Images of each class.")
@click.option(
    "--condition", metavar="FILE", help="safetensors file of vectors [T, C] to draw from in turn."
)
@_RULES
@click.option("--complete", shell_complete=files, metavar="IMAGE", help="Image to complete.")
@click.option(
    "--keep",
    metavar="PART",
    help="Part of the image to keep: top, bottom, left, right, or a mask file, white where kept.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Random seed. [0]")
@image_format_option("an array [H, W, channels] per image")
@click.option(
    "--npz",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write all images as one uint8 array.",
)
@click.option(
    "--nearest",
    is_flag=True,
    help="Also write nearest.png: the first 16 images, each above the nearest training image.",
)
@batch_size_option(32)
@processes_option("processes that share the work")
@computing
def command(
    prior: str,
    number: int | None,
    out: Path,
    classes: str | None,
    per_class: int | None,
    condition: str | None,
    complete: str | None,
    keep: str | None,
    seed: int,
    format: str | None,
    npz: Path | None,
    nearest: bool,
    batch_size: int,
    processes: int,
    device: str | None,
    mixed_precision: str,
    **rules: Any,
) -> None:
    """Draw images from PRIOR, a run directory of genkit train-prior.

    Image i depends on --seed and i alone. The same command resumes after an interruption. Logits
    pass through guidance, temperature, top-k and top-p, in this order.
    """
    if (complete is None) != (keep is None):
        raise click.UsageError("--complete and --keep belong together")
    _not_both("--classes", classes, "--condition", condition)
    _not_both("--number", number, "--per-class", per_class)
    from genkit_cli.launch import share

    share(processes)
    from genkit.completion import kept_of_picture
    from genkit.data.vectors import Vectors
    from genkit.tokens.sample import sample
    from genkit_cli.progress import Counting, busy

    with busy("Loading the model"):
        loaded = genkit.load_prior(prior).to(own_device(device, mixed_precision))
    chosen, number = _classes(loaded, classes, per_class, number)
    with Counting("images", resumes=True) as progress:
        sample(
            loaded,
            out,
            number,
            seed=seed,
            classes=chosen,
            vectors=Vectors(condition).in_turn(range(number)) if condition is not None else None,
            kept=kept_of_picture(loaded, complete, str(keep)) if complete is not None else None,
            rules={name: value for name, value in rules.items() if value is not None},
            batch_size=batch_size,
            format=format,
            npz=npz,
            mixed_precision=mixed_precision,
            progress=progress,
        )
    if nearest and progress.first:
        _write_nearest(prior, loaded, out)
    if progress.first:
        said = tell_format(format, loaded.tokenizer)
        click.echo(f"Drew {counted(number, 'image')} into {out}{said}; look at {out / 'grid.png'}.")


def _not_both(one: str, first: Any, other: str, second: Any) -> None:
    """Raise `UsageError` for two options that exclude each other."""
    if first is not None and second is not None:
        raise click.UsageError(f"give {one} or {other}, not both")


def _write_nearest(path: str, prior: Any, out: Path) -> None:
    """Write the first drawn images above the training images that are nearest to them."""
    import torch

    from genkit.captions import sample_grid
    from genkit.evaluation.images import evaluation_images
    from genkit.evaluation.nearest import nearest
    from genkit.images import from_pixels, save_png, to_pixels
    from genkit.interfaces import Values
    from genkit.tokens.dataset import load_tokens
    from genkit_cli.progress import Counting

    tokens = load_tokens(out / "tokens.safetensors")
    indices = [level.to(prior.device) for level in tokens.batch(0, min(_COMPARED, len(tokens)))]
    images = prior.tokenizer.decode(indices).cpu()
    training = evaluation_images(path, genkit.inspect(path), None, prior.size, "train").images
    values = getattr(training, "values", Values())
    with Counting("training images") as progress:
        found = nearest(to_pixels(images, values), training, progress)
    beside = from_pixels(torch.from_numpy(found.pictures))
    words = "Drawn images, each above the training image with the least mean squared distance"
    save_png(out / "nearest.png", sample_grid(images, beside, words, ("drawn", "nearest")))
    click.echo(
        f"The nearest training images are in {out / 'nearest.png'}; mean squared distances "
        f"from {min(found.distances):.4f} to {max(found.distances):.4f}."
    )


def _classes(
    prior: Any, classes: str | None, per_class: int | None, number: int | None
) -> tuple[list[str | int] | None, int]:
    """The class of each image, and the number of images."""
    turns: list[str | int] = [name.strip() for name in classes.split(",")] if classes else []
    if per_class is not None:
        if not prior.classes:
            raise OptionError("--per-class: this prior was trained without classes")
        named = turns or list(range(len(prior.classes)))
        return [each for each in named for _ in range(per_class)], per_class * len(named)
    count = number or 16
    if not turns:
        return None, count
    return [turns[image % len(turns)] for image in range(count)], count
