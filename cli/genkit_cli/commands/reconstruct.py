"""`genkit reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
from genkit_cli.options import computing, out_option, resolution_option, tell_left_out, tiling
from genkit_cli.terminal import counted

if TYPE_CHECKING:
    from genkit.images import Pixels
    from genkit.interfaces import Split
    from genkit.tokenizer import Tokenizer

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
    for each in sources:
        tell_left_out(each)

    from genkit_cli.progress import Counting

    written, done, total = 0, 0, sum(map(len, sources))
    with Counting("images") as progress:
        chosen = pick_device(device, mixed_precision)
        tokenizer = genkit.load(info["file"]).to(chosen)
        for dataset in sources:
            # On a CPU one by one, because in a batch a latent can round to another code.
            one = chosen.type == "cpu" or getattr(dataset, "native", False)
            together = 1 if one else _BATCH
            for start in range(0, len(dataset), together):
                numbers = range(len(dataset))[start : start + together]
                with mixed(chosen, mixed_precision):
                    pairs = _pairs(tokenizer, dataset, numbers, tile, approximate_tiles)
                for number, pair in pairs:
                    _write(out, dataset.name(number), written, pair)
                    written += 1
                progress(done + numbers[-1] + 1, total)
            done += len(dataset)
    for dataset in sources:
        for name, reason in dataset.problems.items():
            note(printable(f"{name} is left out: {reason}"))
    if not written:
        raise GenkitError("none of the images can be read")
    click.echo(f"Wrote {counted(written, 'picture')} into {out}.")


def _pairs(
    tokenizer: Tokenizer, dataset: Split, numbers: range, tile: int | None, approximate: bool
) -> list[tuple[int, list[Pixels]]]:
    """The readable ones of some images by number, each with its reconstruction."""
    import numpy as np
    import torch

    from genkit.data.reading import read
    from genkit.images import from_pixels, to_uint8
    from genkit.tiles import reconstruct_tiles

    kept, pixels = read(dataset, numbers)
    if not kept:
        return []
    with torch.no_grad():
        made = reconstruct_tiles(tokenizer, pixels, tile, approximate=approximate)
    originals = pixels if pixels.dtype == np.uint8 else to_uint8(from_pixels(pixels))
    return [(numbers[place], pair) for place, *pair in zip(kept, originals, made, strict=True)]


def _write(out: Path, name: str, count: int, pair: list[Pixels]) -> None:
    import numpy as np

    from genkit.images import grid, save_png
    from genkit.tokens.decode import safe_name

    save_png(out / f"{safe_name(name, count)}.png", grid([np.stack(pair)]))
