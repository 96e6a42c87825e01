"""`genkit decode`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.devices import own_device
from genkit_cli.complete import files
from genkit_cli.options import (
    batch_size_option,
    computing,
    image_format_option,
    out_option,
    processes_option,
    shard_size_option,
    tell_format,
    tiling,
)
from genkit_cli.terminal import counted


@click.command()
@click.argument("checkpoint", shell_complete=files)
@click.argument("tokens", shell_complete=files)
@out_option("DIR", "Folder for the images.")
@batch_size_option(32)
@image_format_option("arrays [N, H, W, channels]")
@shard_size_option("Images per array with --format npy.")
@processes_option("processes that share the work")
@tiling
@computing
def command(
    checkpoint: str,
    tokens: str,
    out: Path,
    batch_size: int,
    format: str | None,
    shard_size: int,
    processes: int,
    tile: int | None,
    approximate_tiles: bool,
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
    from genkit_cli.progress import Counting, busy

    with busy("Loading the model"):
        tokenizer = genkit.load(checkpoint).to(own_device(device, mixed_precision))
    with Counting("images", resumes=True) as progress:
        count = decode(
            tokenizer,
            load_tokens(tokens, tokenizer),
            out,
            batch_size=batch_size,
            format=format,
            shard_size=shard_size,
            mixed_precision=mixed_precision,
            tile=tile,
            approximate_tiles=approximate_tiles,
            progress=progress,
        )
    if progress.first:
        click.echo(f"Decoded {counted(count, 'image')} into {out}{tell_format(format, tokenizer)}.")
