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
from genkit_cli.options import computing, out_option, resolution_option

# Images that go through a GPU at once.
_BATCH = 16


@click.command()
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@out_option("DIR", "Folder for the pictures.")
@resolution_option("the images as they are, padded to the stride and cropped back")
@computing
def command(
    checkpoint: str,
    images: tuple[str, ...],
    out: Path,
    resolution: str | None,
    device: str | None,
    mixed_precision: str,
) -> None:
    """Write a picture for each IMAGE (a file, a folder, or a data set name): the original on the
    left, its reconstruction on the right.
    """
    info = inspect_tokenizer(checkpoint)
    size = size_of(info, resolution or NATIVE)
    sources = [all_images(image, size, model=info) for image in images]

    import torch

    from genkit.data.reading import batches
    from genkit.images import grid, save_png, to_uint8
    from genkit.tokens.decode import safe_name

    chosen = pick_device(device, mixed_precision)
    tokenizer = genkit.load(info["file"]).to(chosen)
    written = 0
    for dataset in sources:
        # On a CPU one by one, because in a batch a latent can round to another code.
        count = 1 if chosen.type == "cpu" or getattr(dataset, "native", False) else _BATCH
        for indices, batch in batches(dataset, len(dataset), count, chosen):
            with torch.no_grad(), mixed(chosen, mixed_precision):
                made = tokenizer(tokenizer.pad(batch)).images
                height, width = batch.shape[2:]
                pairs = [to_uint8(batch), to_uint8(made[:, :, :height, :width])]
            for index, *pair in zip(indices, *map(torch.from_numpy, pairs), strict=True):
                save_png(
                    out / f"{safe_name(dataset.name(index), written)}.png",
                    grid([torch.stack(pair).numpy()]),
                )
                written += 1
        for name, reason in dataset.problems.items():
            click.echo(printable(f"{name} is left out: {reason}"), err=True)
    if not written:
        raise GenkitError("none of the images can be read")
    click.echo(f"{written} pictures are in {out}.")
