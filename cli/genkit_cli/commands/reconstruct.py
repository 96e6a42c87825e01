"""`genkit reconstruct`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.devices import mixed, pick_device
from genkit.errors import GenkitError
from genkit.evaluation.images import all_images, size_of
from genkit.files import printable
from genkit.size import NATIVE
from genkit_cli.complete import files
from genkit_cli.messages import note
from genkit_cli.options import computing, out_option, resolution_option, tiling
from genkit_cli.terminal import counted

# Images that go through a GPU at once.
_BATCH = 16


@click.command()
@click.argument("checkpoint", shell_complete=files)
@click.argument("images", shell_complete=files, nargs=-1, required=True, metavar="IMAGE…")
@out_option("DIR", "Folder for the pictures.")
@resolution_option("the images as they are, padded to the stride and cropped back")
@tiling
@computing
def command(
    checkpoint: str,
    images: tuple[str, ...],
    out: Path,
    resolution: str | None,
    tile: int | None,
    approximate_tiles: bool,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Write a picture for each IMAGE (a file, a folder, or a data set name): the original on the
    left, its reconstruction on the right.
    """
    info = inspect_tokenizer(checkpoint)
    size = size_of(info, resolution or NATIVE)
    sources = [all_images(image, size, model=info) for image in images]

    import numpy as np
    import torch

    from genkit.data.reading import read
    from genkit.images import from_pixels, grid, save_png, to_uint8
    from genkit.tiles import reconstruct_tiles
    from genkit.tokens.decode import safe_name

    chosen = pick_device(device, mixed_precision)
    tokenizer = genkit.load(info["file"]).to(chosen)
    written = 0
    for dataset in sources:
        # On a CPU one by one, because in a batch a latent can round to another code.
        one = chosen.type == "cpu" or getattr(dataset, "native", False)
        together = 1 if one else _BATCH
        for start in range(0, len(dataset), together):
            indices, pixels = read(dataset, range(len(dataset))[start : start + together])
            if not indices:
                continue
            with torch.no_grad(), mixed(chosen, mixed_precision):
                made = reconstruct_tiles(tokenizer, pixels, tile, approximate=approximate_tiles)
            originals = pixels if pixels.dtype == np.uint8 else to_uint8(from_pixels(pixels))
            for place, *pair in zip(indices, originals, made, strict=True):
                save_png(
                    out / f"{safe_name(dataset.name(start + place), written)}.png",
                    grid([np.stack(pair)]),
                )
                written += 1
        for name, reason in dataset.problems.items():
            note(printable(f"{name} is left out: {reason}"))
    if not written:
        raise GenkitError("none of the images can be read")
    click.echo(f"Wrote {counted(written, 'picture')} into {out}.")
