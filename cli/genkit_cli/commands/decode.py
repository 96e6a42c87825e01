"""`genkit decode`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.devices import mixed, pick_device
from genkit_cli.commands.reconstruct import safe_name
from genkit_cli.options import batch_size_option, computing, out_option


@click.command()
@click.argument("checkpoint")
@click.argument("tokens", metavar="TOKENS.safetensors")
@out_option("DIR", "Folder for the pictures.")
@batch_size_option(32)
@computing
def command(
    checkpoint: str,
    tokens: str,
    out: Path,
    batch_size: int,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Decode the indices in a file of `genkit encode` into pictures."""
    from genkit.data.tokens import load_tokens
    from genkit.images import save_png, to_uint8

    chosen = pick_device(device, mixed_precision)
    tokenizer = genkit.load(checkpoint).to(chosen)
    loaded = load_tokens(tokens, tokenizer)
    batch_size = 1 if loaded.ragged else batch_size
    for start in range(0, len(loaded.names), batch_size):
        indices = [level.to(chosen) for level in loaded.batch(start, start + batch_size)]
        with mixed(chosen, mixed_precision):
            pictures = to_uint8(tokenizer.decode(indices))
        for number, picture in enumerate(pictures, start):
            save_png(out / f"{safe_name(loaded.names[number], number)}.png", picture)
    click.echo(f"{len(loaded.names)} pictures are in {out}.")
