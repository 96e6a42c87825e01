"""`genkit evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit.checkpoint.inspect import codebook_text
from genkit.errors import HoldsPrior
from genkit.evaluation.figures import labelled
from genkit.evaluation.kept import Kept
from genkit.evaluation.measurement import Measurement
from genkit.files import check_place, printable, write_text
from genkit_cli.complete import files
from genkit_cli.options import (
    measuring,
    notes_of,
    out_option,
    tell_left_out,
    tell_notes,
    tell_unreadable,
)
from genkit_cli.table import print_table

if TYPE_CHECKING:
    from genkit.evaluation.prior import PriorMeasurement


@click.command()
@click.argument("checkpoint", shell_complete=files)
@measuring
@click.option(
    "--condition",
    shell_complete=files,
    metavar="FILE",
    help="safetensors file of the images' vectors, for a prior.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    metavar="N",
    help="Samples of a prior to compare with training images by --distances or --metric.",
)
@click.option("--by-class", is_flag=True, help="Also print mean figures per class of the data set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@out_option(
    "FILE.json", "Also write the JSON object to this file, for genkit compare.", required=False
)
def command(
    checkpoint: str,
    as_json: bool,
    out: Path | None,
    condition: str | None,
    samples: int | None,
    **measuring_options: Any,
) -> None:
    """Measure a checkpoint: PSNR, SSIM, MAE, MAE over variance, the metrics of --metric, and
    codebook usage per level.

    All images of a data set are measured. If it is the training data, only the held-out images are.
    A run directory keeps the figures in `records/`, where genkit compare finds them.
    A prior's figures are the bits per pixel and the nats per index that it needs, by level, beside
    the PSNR of its tokenizer: fewer bits mean little without the same PSNR.
    """
    if out:
        _check_place(out)
    try:
        measurement = Measurement(checkpoint, **measuring_options)
    except HoldsPrior:
        own = {"condition": condition, "samples": samples}
        _measure_prior(checkpoint, as_json, out, {**measuring_options, **own})
        return
    for flag, value in (("--condition", condition), ("--samples", samples)):
        if value is not None:
            raise click.UsageError(f"{flag} applies to priors, and this is a tokenizer.")
    tell_notes(measurement)
    if not as_json:
        tell_left_out(measurement.dataset.split)
    place = Kept(measurement)
    record = _measured(measurement)
    place.write(record)
    if _written(record, as_json, out):
        return
    bits = f"{record['bits_per_pixel']:.3f} bits per pixel"
    click.echo(f"{_images(record, measurement.data_text)}, {bits}")
    click.echo("   ".join(labelled(record)))
    for each in notes_of(record):
        click.echo(each)
    for index, level in enumerate(record["levels"]):
        click.echo(
            f"level {index}: {level['active']} of {codebook_text(level)} codes in use "
            f"({level['usage']:.1%}), perplexity {level['perplexity']:.1f}"
        )
    further = {"metrics": record.get("metrics", {})}
    rows = [
        (
            f"class {printable(each['name'].removeprefix('class '))}",
            f"{each['images']} images",
            "   ".join(labelled({**further, **each})),
        )
        for each in record.get("classes", [])
    ]
    if rows:
        print_table(rows)
    if out:
        click.echo(f"The record is in {out}.")


def _check_place(out: Path) -> None:
    """Refuse a place that no record can be written to."""
    if out.suffix != ".json":
        raise click.UsageError(
            f"--out {out} must end in .json, so that genkit compare recognises it."
        )
    check_place(out)


def _measured(measurement: Measurement | PriorMeasurement) -> dict[str, Any]:
    from genkit_cli.progress import Counting

    with Counting("images") as progress:
        return measurement.record(progress)


def _written(record: Mapping[str, Any], as_json: bool, out: Path | None) -> bool:
    """Write a record to a file and as JSON, if asked; whether nothing else is to be printed."""
    if out:
        write_text(out, json.dumps(record, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(record))
    else:
        tell_unreadable(dict(record))
    return as_json


def _images(record: Mapping[str, Any], data: str) -> str:
    """The images that a record was measured on, in words."""
    protocol = record["protocol"]
    which = {"heldout": "held-out ", "train": "training "}.get(protocol["split"], "")
    size = protocol["resolution"]
    if isinstance(size, list):
        size = size[0] if size[0] == size[1] else " x ".join(map(str, size))
    return f"{record['images']} {which}images of {data} at {size} px"


def _measure_prior(
    checkpoint: str, as_json: bool, out: Path | None, options: Mapping[str, Any]
) -> None:
    from genkit.evaluation.prior import PriorMeasurement

    if unused := [name for name in _TOKENIZERS_ONLY if options[name]]:
        flag = unused[0].replace("_", "-")
        raise click.UsageError(f"--{flag} applies to tokenizers, and this is a prior.")
    given = {name: options[name] for name in options if name not in _TOKENIZERS_ONLY}
    measurement = PriorMeasurement(checkpoint, **given)
    tell_notes(measurement)
    record = _measured(measurement)
    if _written(record, as_json, out):
        return
    figures = labelled({key: value for key, value in record.items() if key != "psnr"})
    click.echo(f"{_images(record, measurement.data_text)}: {'   '.join(figures)}")
    bound = "" if record["exact"] else "≤ "
    click.echo(
        f"the tokenizer: PSNR {record['psnr']:.3f} dB at "
        f"{record['plain_bits_per_pixel']:.4f} bits per pixel without a prior"
    )
    for index, level in enumerate(record["levels"]):
        click.echo(
            f"level {index}: {bound}{level['nats']:.4f} nats per index "
            f"({math.log(level['codebook_size']):.4f} if all codes were equally likely), "
            f"{bound}{level['bits_per_pixel']:.4f} bits per pixel"
        )
    for each in notes_of(record):
        click.echo(each)
    if out:
        click.echo(f"The record is in {out}.")


_TOKENIZERS_ONLY = ("resolution", "exact", "by_class")
