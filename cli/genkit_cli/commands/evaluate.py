"""`genkit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from genkit.checkpoint.inspect import codebook_text
from genkit.evaluation.figures import labelled
from genkit.evaluation.measurement import Measurement
from genkit.files import check_place, printable, write_text
from genkit_cli.options import measuring, notes_of, out_option, tell_notes, tell_unreadable
from genkit_cli.table import print_table


@click.command()
@click.argument("checkpoint")
@measuring
@click.option("--by-class", is_flag=True, help="Also print mean figures per class of the data set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@out_option(
    "FILE.json", "Also write the JSON object to this file, for genkit compare.", required=False
)
def command(checkpoint: str, as_json: bool, out: Path | None, **measuring_options: Any) -> None:
    """Measure a checkpoint: PSNR, SSIM, MAE, MAE over variance, the metrics of --metric, and
    codebook usage per level.

    All images of a data set are measured. If it is the training data, only the held-out images are.
    """
    if out:
        if out.suffix != ".json":
            raise click.UsageError(
                f"--out {out} must end in .json, so that genkit compare recognises it."
            )
        check_place(out)
    measurement = Measurement(checkpoint, **measuring_options)
    tell_notes(measurement)
    record = measurement.record()
    if out:
        write_text(out, json.dumps(record, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(record))
        return
    tell_unreadable(record)
    protocol = record["protocol"]
    which = {"heldout": "held-out ", "train": "training "}.get(protocol["split"], "")
    click.echo(
        f"{record['images']} {which}images of {measurement.data_text} "
        f"at {protocol['resolution']} px, "
        f"{record['bits_per_pixel']:.3f} bits per pixel"
    )
    click.echo("   ".join(labelled(record)))
    for note in notes_of(record):
        click.echo(note)
    for index, level in enumerate(record["levels"]):
        click.echo(
            f"level {index}: {level['active']} of {codebook_text(level)} codes in use "
            f"({level['usage']:.1%}), perplexity {level['perplexity']:.1f}"
        )
    further = {"metrics": record.get("metrics", {})}
    rows = [
        (
            f"class {printable(each['name'])}",
            f"{each['images']} images",
            "   ".join(labelled({**further, **each})),
        )
        for each in record.get("classes", [])
    ]
    if rows:
        print_table(rows)
    if out:
        click.echo(f"The record is in {out}.")
