"""`genkit decode`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit_cli.commands.reconstruct import safe_name
from genkit_cli.options import out_option


@click.command()
@click.argument("checkpoint")
@click.argument("tokens", metavar="TOKENS.safetensors")
@out_option("DIR", "Where the pictures go.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, metavar="N", help="Images at a time. [32]"
)
def command(checkpoint: str, tokens: str, out: Path, batch_size: int) -> None:
    """Turn indices that `genkit encode` wrote back into pictures."""
    import torch

    from genkit.data.tokens import load_tokens
    from genkit.images import save_png, to_uint8

    tokenizer = genkit.load(checkpoint)
    loaded = load_tokens(tokens, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer.to(device)
    batch_size = 1 if loaded.ragged else batch_size
    for start in range(0, len(loaded.names), batch_size):
        indices = [level.to(device) for level in loaded.batch(start, start + batch_size)]
        pictures = to_uint8(tokenizer.decode(indices))
        for number, picture in enumerate(pictures, start):
            save_png(out / f"{safe_name(loaded.names[number], number)}.png", picture)
    click.echo(f"{len(loaded.names)} pictures are in {out}.")
