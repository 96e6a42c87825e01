"""`genkit encode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import genkit
from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.devices import own_device
from genkit.evaluation.images import all_images, size_of
from genkit.size import NATIVE
from genkit.tokens import FORMATS
from genkit_cli.complete import files, of_kind
from genkit_cli.options import (
    batch_size_option,
    computing,
    format_option,
    out_option,
    processes_option,
    resolution_option,
    shard_size_option,
    tell_left_out,
    tell_problems,
    tiling,
)
from genkit_cli.terminal import counted, typed

if TYPE_CHECKING:
    from genkit.tokens.dataset import Tokens


@click.command()
@click.argument("checkpoint", shell_complete=files)
@click.argument("folder", shell_complete=of_kind("dataset", or_files=True))
@out_option("OUT", "A .safetensors file to write, or a folder for shards.")
@click.option(
    "--split",
    type=click.Choice(["train", "heldout", "all"]),
    default="all",
    help="Split of the data set. [all]",
)
@resolution_option()
@batch_size_option(32)
@click.option(
    "--views",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Views per image: the image itself, and N - 1 random crops and flips. [1]",
)
@shard_size_option("Images per shard; a killed encoding repeats at most one shard per process.")
@format_option(FORMATS, "Format of the shards.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(-1),
    default=-1,
    help="Worker processes that read images; 0 is a thread, -1 chooses by the machine. [-1]",
)
@processes_option("processes that share the work")
@tiling
@computing
def command(
    checkpoint: str,
    folder: str,
    out: Path,
    split: str,
    resolution: str | None,
    batch_size: int,
    views: int,
    shard_size: int,
    format: str,
    workers: int,
    processes: int,
    tile: int | None,
    approximate_tiles: bool,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Encode the images of FOLDER (or of a data set by name) as indices.

    Indices are stored with the images' names, labels and captions, as docs/formats.md describes.
    The same command resumes after an interruption. With --mixed-precision bf16, about one index in
    a hundred differs.
    """
    from genkit_cli.launch import share

    info = inspect_tokenizer(checkpoint)
    size = size_of(info, resolution)
    from genkit.tokens.encode import encode, output_at

    output = output_at(out, format)
    output.check()
    share(processes)
    dataset = all_images(folder, size, split, once=True, model=info)
    tell_left_out(dataset)
    from genkit_cli.progress import Counting, busy

    with busy("Loading the model"):
        tokenizer = genkit.load(info["file"]).to(own_device(device, mixed_precision))
    with Counting("images", resumes=True) as progress:
        tokens = encode(
            tokenizer,
            dataset,
            out,
            batch_size=batch_size,
            views=views,
            shard_size=shard_size,
            format=format,
            workers=workers,
            mixed_precision=mixed_precision,
            tile=tile,
            approximate_tiles=approximate_tiles,
            progress=progress,
        )
    if not output.process:
        tell_problems(tokens.table["unreadable"])
        click.echo(
            f"{_encoded(tokens, views, out)} "
            f"To decode them: genkit decode {typed(checkpoint)} {typed(out)} --out DIR"
        )


def _encoded(tokens: Tokens, views: int, out: Path) -> str:
    """A sentence on the result."""
    count, problems = counted(len(tokens) // views, "image"), tokens.table["unreadable"]
    if views > 1:
        count = f"{len(tokens)} views of {count}"
    left = f" ({counted(len(problems), 'file')} left out)" if problems else ""
    shapes = ", ".join(f"{list(level.shape[1:])}" for level in tokens.batch(0, 1))
    if tokens.table["resolution"] == NATIVE and len(tokens) > 1:
        shapes += " in the first image; genkit tokens lists the sizes"
    return f"Encoded {count}{left} into {out} as indices of {shapes}."
