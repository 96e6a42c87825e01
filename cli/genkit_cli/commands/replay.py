"""`genkit replay`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from genkit.files import CONFIG
from genkit.run.toml import read_config
from genkit.settings import resolve
from genkit_cli.launch import is_launched, launch
from genkit_cli.training import kind_of, task_of

_SHOWN = 5


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, as_json: bool) -> None:
    """Re-run the step at which training gave up, and show the tensors with NaN or infinity.

    A run that skips too many steps in a row saves the last one's batches, seeds and state in the
    folder failure of its directory. Exit code 0 if the step fails again, else 1.
    """
    if not (run / CONFIG).is_file():
        raise click.UsageError(f"'{run}' is not a run directory: it has no {CONFIG}")
    from genkit.training.replay import failed_step, replay
    from genkit_cli.progress import busy

    step, state = failed_step(run)
    processes = state["origin"]["processes"]
    if processes > 1 and not is_launched(processes):
        sys.exit(launch(sys.argv[1:], processes))
    config = read_config(run / CONFIG)
    kind = kind_of(config)
    with busy(f"Repeating step {step}"):
        found = replay(task_of(kind), resolve(kind, config), run, step, state)
    if os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(found) if as_json else _text(found))
    sys.exit(0 if found["failed"] else 1)


def _text(found: dict[str, object]) -> str:
    lines = [
        f"Step {found['step']} fails again. Not finite: {_listed(found['now'])}."
        if found["failed"]
        else f"Step {found['step']} does not fail here. Not finite in the run: "
        f"{_listed(found['then'])}."
    ]
    for key, what in (
        ("weights", "Not finite before the step"),
        ("modules", "Modules with a non-finite output, in the order of the forward pass"),
        ("gradients", "Parameters with a non-finite gradient, last layers first"),
    ):
        if found[key]:
            lines.append(f"{what}: {_listed(found[key])}")
    return "\n".join(lines)


def _listed(names: object) -> str:
    names = list(names) if isinstance(names, list) else []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none in this process"
