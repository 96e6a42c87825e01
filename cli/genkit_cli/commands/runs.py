"""`genkit runs`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click

from genkit.errors import GenkitError
from genkit.files import printable
from genkit.run.overview import Overview, runs_below
from genkit_cli.complete import files
from genkit_cli.messages import note
from genkit_cli.table import print_table


@click.command()
@click.argument("folder", default="runs", type=click.Path(path_type=Path), shell_complete=files)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path, as_json: bool) -> None:
    """List the run directories in FOLDER, by default `runs`: the newest first.

    A run is done, running, stopped before its last step, or failed.
    """
    found = runs_below(folder, lambda path, error: note(printable(f"{path} is left out: {error}")))
    if as_json:
        click.echo(json.dumps({"runs": [_entry(run) for run in found]}))
        return
    if not found:
        raise GenkitError(f"there is no run in '{folder}'")
    print_table([_row(run) for run in found])


def _row(run: Overview) -> tuple[str, ...]:
    when = datetime.fromtimestamp(run.changed).astimezone().strftime("%Y-%m-%d %H:%M")
    steps = f"{run.step}/{run.steps}"
    return str(run.path), run.kind, run.state, steps, when, run.figures[0] if run.figures else "-"


def _entry(run: Overview) -> dict[str, object]:
    return {
        "path": str(run.path),
        "kind": run.kind,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "changed": run.changed,
        "validation": run.validation,
    }
