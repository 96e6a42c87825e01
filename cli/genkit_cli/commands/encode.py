"""`genkit encode`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.checkpoint.metadata import read_genkit
from genkit.devices import mixed, pick_device
from genkit.errors import CheckpointError
from genkit.evaluation.images import all_images, resolution_of
from genkit.files import check_place, printable
from genkit_cli.options import batch_size_option, computing, out_option, resolution_option
from genkit_cli.terminal import typed


@click.command()
@click.argument("checkpoint")
@click.argument("folder")
@out_option("FILE", "The .safetensors file to write.")
@resolution_option
@batch_size_option(32)
@computing
def command(
    checkpoint: str,
    folder: str,
    out: Path,
    resolution: int | None,
    batch_size: int,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Encode the images of FOLDER (or of a data set by name) as indices.

    The file holds one tensor [N, h, w] per level, from `level0`, the finest, and the images'
    names, labels and captions.
    """
    _check_out(out)
    info = genkit.inspect(checkpoint)
    size = resolution_of(info, resolution)
    dataset = all_images(folder, (size, size))

    from genkit.data.tokens import encode, save_tokens

    chosen = pick_device(device, mixed_precision)
    tokenizer = genkit.load(info["file"]).to(chosen)
    with mixed(chosen, mixed_precision):
        tokens = encode(tokenizer, dataset, batch_size)
    save_tokens(tokens, out)
    for name, reason in dataset.problems.items():
        click.echo(printable(f"{name} is left out: {reason}"), err=True)
    shapes = ", ".join(f"{list(level.shape[1:])}" for level in tokens.batch(0, 1))
    click.echo(
        f"{len(tokens.names)} images are in {out} as indices of {shapes}. "
        f"To decode them: genkit decode {typed(checkpoint)} {typed(out)} --out DIR"
    )


def _check_out(out: Path) -> None:
    """Refuse an `--out` that cannot be written, or an existing file that holds no indices."""
    check_place(out)
    if not out.exists():
        return
    try:
        info, _ = read_genkit(out)
    except CheckpointError:
        info = {}
    if "tokens" not in info:
        raise click.UsageError(
            f"'{out}' exists and holds no indices: name another file with --out."
        )
