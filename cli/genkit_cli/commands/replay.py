"""`genkit replay`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from genkit.files import CONFIG
from genkit.run.config import read_config
from genkit.run.options import resolve_run
from genkit_cli.launch import is_launched, launch

_SHOWN = 5


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, as_json: bool) -> None:
    """Take the step at which a run gave up once more, and show where it stops being finite.

    A run that skips too many steps in a row keeps the last one's images, seeds and state in the
    folder failure of its directory. Exit code 0 if the step fails again, else 1.
    """
    if not (run / CONFIG).is_file():
        raise click.UsageError(f"'{run}' holds no run: it has no {CONFIG}")
    from genkit.training.replay import failed_step, replay
    from genkit.training.tokenizer import TokenizerTask

    step, state = failed_step(run)
    processes = state["origin"]["processes"]
    if processes > 1 and not is_launched(processes):
        sys.exit(launch(sys.argv[1:], processes))
    options = resolve_run(read_config(run / CONFIG))
    found = replay(TokenizerTask, options, run, step, state)
    if os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(found) if as_json else _text(found))
    sys.exit(0 if found["failed"] else 1)


def _text(found: dict[str, object]) -> str:
    lines = [
        f"Step {found['step']} fails again: not finite are {_listed(found['now'])}."
        if found["failed"]
        else f"Step {found['step']} does not fail here; then {_listed(found['then'])} did."
    ]
    for key, what in (
        ("weights", "Before the step, already not finite"),
        ("modules", "Modules whose output was not finite, the first to come first"),
        ("gradients", "Parameters whose gradient was not finite, the last layers first"),
    ):
        if found[key]:
            lines.append(f"{what}: {_listed(found[key])}")
    return "\n".join(lines)


def _listed(names: object) -> str:
    names = list(names) if isinstance(names, list) else []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none of this process's"
