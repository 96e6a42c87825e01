"""`genkit export`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.evaluation.images import resolution_of
from genkit_cli.complete import files
from genkit_cli.options import out_option


@click.command()
@click.argument("checkpoint", shell_complete=files)
@out_option("DIR", "Folder for encode.pt2, decode.pt2 and metadata.json.")
@click.option("--onnx", is_flag=True, help="Write encode.onnx and decode.onnx instead.")
@click.option(
    "--resolution",
    metavar="N|HxW",
    help="Fix height and width. [any multiples of the coarsest level's stride]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), metavar="N", help="Fix the number of images. [any]"
)
def command(
    checkpoint: str, out: Path, onnx: bool, resolution: str | None, batch_size: int | None
) -> None:
    """Write a checkpoint's encoder and decoder as graphs that run without genkit.

    They need PyTorch alone: indices = torch.export.load("encode.pt2").module()(images), and
    images = torch.export.load("decode.pt2").module()(*indices).
    """
    info = inspect_tokenizer(checkpoint)
    size = None if resolution is None else resolution_of(info, resolution)

    from genkit_cli.progress import busy

    with busy("Tracing and checking the graphs"):
        from genkit.export import export

        metadata = export(genkit.load(info["file"]), out, size, batch_size, onnx)
    stride = info["levels"][-1]["stride"]
    sides = f"sides that are multiples of {stride} pixels"
    if size:
        sides = f"{size[0]} x {size[1]} pixels"
    click.echo(
        f"{', '.join(metadata['files'])} and metadata.json are in {out}, "
        f"for {batch_size or 'any number of'} images with {sides}."
    )
