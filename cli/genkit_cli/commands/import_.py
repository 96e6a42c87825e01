"""`genkit import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genkit_cli.complete import files, of_kind
from genkit_cli.messages import note
from genkit_cli.options import out_option
from genkit_cli.terminal import typed


@click.command(name="import")
@click.argument("source", shell_complete=files, metavar="SOURCE")
@out_option("OUT", "Run directory to write.")
@click.option(
    "--family",
    shell_complete=of_kind("importer"),
    metavar="NAME",
    help="Family of the file. [found by its tensors]",
)
@click.option(
    "--image-range",
    type=click.Choice(["signed", "unit"]),
    help="Range of pixel values that the model takes: [-1, 1] or [0, 1]. [the family's]",
)
@click.option(
    "--codes",
    type=click.Choice(["nearest", "product", "cosine"]),
    help="Rule that picks a code, where files of a family differ. [the configuration's]",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration of the model, JSON or YAML. [beside the weights]",
)
@click.option(
    "--check",
    metavar="NAME_OR_FOLDER",
    default="faces",
    help="Images to reconstruct after the import; none checks nothing. [faces]",
)
@click.option(
    "--check-images",
    metavar="N",
    type=click.IntRange(1),
    default=4,
    help="Images of the check. [4]",
)
def command(
    source: str,
    out: Path,
    family: str | None,
    image_range: str | None,
    codes: str | None,
    config: Path | None,
    check: str,
    check_images: int,
) -> None:
    """Import another project's tokenizer from SOURCE.

    SOURCE is a file with weights, a folder with one, or hf://owner/name. Nothing in a file is
    run. `genkit components importer` lists the families.
    """
    from genkit_cli.progress import busy

    with busy("Loading PyTorch"):
        from genkit.importing import check_out, recognise, write
    check_out(out)
    given = {"image_range": image_range, "codes": codes}
    options = {key: value for key, value in given.items() if value is not None}
    with busy(f"Reading {source}"):
        found = recognise(source, family, options, config)
    _tell(found)
    write(found, out)
    click.echo(f"The model is {out / 'model.safetensors'}.")
    if not found.can_decode:
        note("Note: the file holds no decoder: the model can only encode.")
        click.echo(f"Next: genkit encode {typed(out)} FOLDER --out tokens.safetensors")
        return
    if check != "none":
        with busy("Reconstructing images"):
            readings = found.readings(check, check_images)
        _check(readings, check)
    click.echo(f"Next: genkit evaluate {typed(out)} --data FOLDER")


def _tell(found: Any) -> None:
    tokenizer, how = found.tokenizer, "named" if found.named else "by the names of its tensors"
    parameters = sum(each.numel() for each in tokenizer.parameters())
    (count, size), level = tokenizer.codebooks[0], tokenizer.levels[0]
    click.echo(
        f"Family: {found.family} ({how}). {parameters / 1e6:.1f} M parameters, "
        f"{f'{count} x ' if count > 1 else ''}{size} codes, one for {level.stride} x "
        f"{level.stride} pixels."
    )
    for subject, value in found.imported.facts.get("taken", {}).items():
        click.echo(f"  {subject}: {value}")
    if found.is_free:
        click.echo(f"Licence of the published weights: {found.licence}.")
    else:
        note(
            f"Warning: licence of the published weights: {found.licence}; read it before use.",
        )


def _check(readings: Any, location: str) -> None:
    from genkit.importing import LOWEST

    own, *others = readings
    click.echo(f"PSNR of reconstructed images of {location}: {own.psnr:.2f} dB")
    for other in others:
        click.echo(f"  with {other.flag}: {other.psnr:.2f} dB")
    best = max(readings, key=lambda reading: reading.psnr)
    if best.flag and best.psnr > own.psnr + 1:
        note(
            f"Warning: {best.flag} reconstructs better by {best.psnr - own.psnr:.1f} dB: "
            "import the file again with it.",
        )
    elif own.psnr < LOWEST:
        note(
            f"Warning: a trained tokenizer reaches more than {LOWEST:g} dB: the weights may be "
            "untrained, or of a family that is not known here.",
        )
