"""Click options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from genkit.files import printable

if TYPE_CHECKING:
    from genkit.evaluation.record import Measurement

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--data",
        metavar="NAME_OR_FOLDER",
        help="What to evaluate on. [what it was trained on, held-out images]",
    ),
    click.option(
        "--split",
        type=click.Choice(["train", "heldout", "all"]),
        help="Which of the images. [held-out ones of what it was trained on, all of anything else]",
    ),
    click.option(
        "--images", type=click.IntRange(1), metavar="N", help="How many images at most. [all]"
    ),
    click.option(
        "--resolution",
        type=click.IntRange(1),
        metavar="N",
        help="Height and width of the images. [as in training]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=16,
        metavar="N",
        help="Images read and compared at a time; changes no figure. [16]",
    ),
)


def measuring(command: Command) -> Command:
    """Give a command the options of `Measurement`."""
    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


def tell_notes(measurement: Measurement) -> None:
    """Print on stderr what to know before the figures."""
    for note in measurement.notes:
        click.echo(note, err=True)


def tell_unreadable(record: dict[str, Any], where: str = "") -> None:
    """Say on stderr which files were left out, if some were."""
    if problems := record.get("unreadable"):
        click.echo(
            f"{where}{len(problems)} files cannot be read and are left out, "
            f"first {printable(next(iter(problems)))}.",
            err=True,
        )


def out_option(metavar: str, help: str, required: bool = True) -> Callable[[Command], Command]:
    """The `--out` of a command that writes what it was told to."""
    kind = click.Path(path_type=Path)
    return click.option(
        "--out", required=required, callback=_named, type=kind, metavar=metavar, help=help
    )


def _named(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse an empty `--out`, which an unset variable leaves."""
    if value == Path():
        raise click.UsageError(f"--{parameter.name} is empty; is a variable unset?")
    return value
