"""`genkit decode`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.devices import own_device
from genkit_cli.options import batch_size_option, computing, out_option, processes_option


@click.command()
@click.argument("checkpoint")
@click.argument("tokens")
@out_option("DIR", "Folder for the images.")
@batch_size_option(32)
@click.option(
    "--format",
    type=click.Choice(["png", "npy"]),
    default="png",
    help="A picture per image, or uint8 arrays [N, H, W, channels]. [png]",
)
@click.option(
    "--shard-size",
    metavar="N",
    type=click.IntRange(1),
    default=4096,
    help="Images per array with --format npy. [4096]",
)
@processes_option("processes that share the work")
@computing
def command(
    checkpoint: str,
    tokens: str,
    out: Path,
    batch_size: int,
    format: str,
    shard_size: int,
    processes: int,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Decode TOKENS, a file or a folder of `genkit encode`, into images.

    The same command resumes after an interruption.
    """
    from genkit_cli.launch import share

    share(processes)
    from genkit.tokens.dataset import load_tokens
    from genkit.tokens.decode import decode
    from genkit_cli.progress import Counting

    tokenizer = genkit.load(checkpoint).to(own_device(device, mixed_precision))
    with Counting("images") as progress:
        count = decode(
            tokenizer,
            load_tokens(tokens, tokenizer),
            out,
            batch_size=batch_size,
            format=format,
            shard_size=shard_size,
            mixed_precision=mixed_precision,
            progress=progress,
        )
    if progress.first:
        what = "pictures" if format == "png" else "images"
        click.echo(f"{count} {what} are in {out}.")
