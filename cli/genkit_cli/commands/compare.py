"""`genkit compare`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from genkit.checkpoint.hub import is_address
from genkit.errors import GenkitError
from genkit.evaluation.figures import Shown, shown
from genkit.evaluation.kept import Kept
from genkit.evaluation.measurement import Measurement
from genkit.evaluation.record import circumstances, differences, read_record, unlike_metrics
from genkit.run.config import is_run
from genkit.run.overview import Overview, differing
from genkit.settings import typed
from genkit_cli.complete import files
from genkit_cli.formats import FORMATS, comma_separated, latex, markdown
from genkit_cli.messages import note
from genkit_cli.options import measuring, notes_of, tell_left_out, tell_notes, tell_unreadable


class _Column(NamedTuple):
    """A column of figures; `lowest` says whether the lowest or the highest is best."""

    title: str
    value: Callable[[dict[str, Any]], float | None]
    form: str
    lowest: bool


@click.command()
@click.argument("models", shell_complete=files, nargs=-1, required=True, metavar="A B …")
@measuring
@click.option(
    "--anew", is_flag=True, help="Measure again even if a run directory keeps these figures."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="Form of the table; csv has figures with all their digits.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    anew: bool,
    as_json: bool,
    form: str,
    **measuring_options: Any,
) -> None:
    """Compare models in one table of figures, measured on the same images.

    A, B, … are checkpoints, or files that `genkit evaluate --out FILE.json` wrote. A checkpoint is
    measured now, unless its run directory keeps figures of the same weights, images and options in
    `records/`. The options that differ come first: of whole runs if all are run directories, else
    of the models' components. The other options apply to the checkpoints.
    """
    _check(models)
    if as_json and form != "text":
        raise click.UsageError("give --json or --format, not both")
    records = {name: read_record(Path(name)) for name in models if _is_file(name)}
    if len(records) == len(models):
        _check_idle(context, (*measuring_options, "anew"))
    planned = {
        name: Measurement(name, **measuring_options) for name in models if name not in records
    }
    for each in planned.values():
        tell_notes(each)
    if planned and not as_json:
        tell_left_out(next(iter(planned.values())).dataset.split)
    # Fail before measuring, which can take hours.
    _check_resolutions(models, records, planned)
    found = {
        name: records[name] if name in records else _figures(name, planned[name], anew)
        for name in models
    }
    first = models[0]
    for name in models[1:]:
        _check_pair(first, name, found)
    _check_models(found)
    for name in planned:
        tell_unreadable(found[name], f"{name}: ")
    for name in models[1:]:
        if others := _listed(circumstances(found[first], found[name]), first, name):
            note(f"Note: measured under different conditions: {others}.")
    if as_json:
        rows = [{"name": name, **record} for name, record in found.items()]
        click.echo(json.dumps({"differing": _differing(found), "models": rows}))
        return
    # A record names the data set alone, and not where it is.
    named = [each.data_text for each in planned.values()]
    images = _images(next(iter(found.values()))["protocol"], named[0] if named else "")
    if form == "text":
        _print(found, images)
    else:
        click.echo(_exported(found, form, images))


def _figures(name: str, planned: Measurement, anew: bool) -> dict[str, Any]:
    """The record that a run directory keeps, or else a new one, which it then keeps."""
    from genkit_cli.progress import Counting

    place = Kept(planned)
    with Counting("images") as progress:
        found = None if anew else place.read(progress)
    if found:
        record, measured, file = found
        note(f"{name}: figures of {measured[:10]} from {file}.")
        return record
    with Counting("images") as progress:
        record = planned.record(progress)
    place.write(record)
    return record


def _check(models: Sequence[str]) -> None:
    if len(models) < 2:
        raise click.UsageError(
            f"There is only {models[0]}: name two or more. "
            "genkit evaluate shows the figures of one model."
        )
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise click.UsageError(f"{twice} is named twice: name every model once.")


def _check_idle(context: click.Context, options: Iterable[str]) -> None:
    """Refuse options of measuring where nothing is measured."""
    flags = {each.name: each.opts[0] for each in context.command.params}
    for option in options:
        if context.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"{flags[option]} applies to checkpoints, but all of these are files with "
                "figures: name the checkpoints to measure them again."
            )


def _is_file(name: str) -> bool:
    return not is_address(name) and Path(name).suffix == ".json" and not Path(name).is_dir()


def _check_resolutions(
    models: Sequence[str], records: dict[str, dict[str, Any]], planned: dict[str, Measurement]
) -> None:
    sizes = {
        name: (records[name]["protocol"] if name in records else planned[name].protocol)[
            "resolution"
        ]
        for name in models
    }
    paths = [records[name]["model"]["path"] if name in records else name for name in models]
    for name, size in sizes.items():
        if size != sizes[models[0]]:
            _refuse(models[0], name, [("resolution", sizes[models[0]], size)], paths)


def _check_pair(one: str, other: str, found: dict[str, dict[str, Any]]) -> None:
    unlike = differences(found[one]["protocol"], found[other]["protocol"])
    if unlike:
        _refuse(one, other, unlike, [record["model"]["path"] for record in found.values()])
    for metric, ours, theirs in unlike_metrics(found[one], found[other]):
        raise GenkitError(
            f"{one} and {other} cannot be compared: the metric {metric} has the options "
            f"{_text(ours)} in {one}, {_text(theirs)} in {other}; measure both with the same "
            "options"
        )


def _refuse(
    one: str, other: str, unlike: Sequence[tuple[str, Any, Any]], paths: Sequence[str]
) -> None:
    keys = {key for key, _, _ in unlike}
    counts = {"images asked for", "images found"}
    flags = [
        *(["--resolution N"] if "resolution" in keys else []),
        *(["--images N"] if keys & counts else []),
        *(["--data NAME_OR_FOLDER"] if keys - counts - {"resolution"} else []),
    ]
    raise GenkitError(
        f"{one} and {other} cannot be compared: {_listed(unlike, one, other)}; measure all "
        f"on the same images: genkit compare {shlex.join(paths)} {' '.join(flags)}"
    )


def _listed(unlike: Iterable[tuple[str, Any, Any]], one: str, other: str) -> str:
    return "; ".join(f"{key} {_text(a)} in {one}, {_text(b)} in {other}" for key, a, b in unlike)


def _text(value: Any) -> str:
    return "not given" if value is None else json.dumps(value).strip('"')


def _check_models(found: dict[str, dict[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for name, record in found.items():
        model = record["model"]
        key = json.dumps([model["fingerprint"], model.get("components")], sort_keys=True)
        if key in seen:
            raise GenkitError(
                f"{seen[key]} and {name} are the same model, weight for weight: name it once"
            )
        seen[key] = name


def _columns(records: Iterable[dict[str, Any]]) -> list[_Column]:
    records = list(records)
    levels = max(len(record["levels"]) for record in records)
    metrics = {key: how for record in records for key, how in shown(record).items()}

    def figure(key: str, how: Shown) -> _Column:
        form, lowest = f".{how.decimals}f", how.better == "lower"
        return _Column(how.label, lambda record: record.get(key), form, lowest)

    def usage(level: int) -> Callable[[dict[str, Any]], float | None]:
        return lambda record: dict(enumerate(record["levels"])).get(level, {}).get("usage")

    return [
        _Column("bits/pixel", lambda record: record["bits_per_pixel"], ".3f", True),
        *(figure(key, how) for key, how in metrics.items()),
        *(_Column(f"use {level}", usage(level), ".1%", False) for level in range(levels)),
    ]


def _differing(found: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The options that differ between the models, with a value per model."""
    models = [record["model"] for record in found.values()]
    if all(is_run(model["path"]) for model in models):
        return differing([Overview.of(model["path"]).config for model in models])
    return differing([_parts(model.get("components") or {}) for model in models])


def _parts(components: Mapping[str, Any]) -> dict[str, Any]:
    """The components of a record, in the form of a config."""
    return {
        kind: {"name": each["name"], **_parts_and_values(each["options"])}
        for kind, each in components.items()
    }


def _parts_and_values(options: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: value for key, value in options.items() if isinstance(value, Mapping)}
    return {**options, **_parts(nested)}


def _exported(found: dict[str, dict[str, Any]], form: str, images: str) -> str:
    """One table of the differing options and the figures, in Markdown, LaTeX or CSV.

    Markdown and LaTeX hold a line on the images; CSV has none, so it goes to stderr.
    """
    columns, options = _columns(found.values()), _differing(found)
    head = ["model", *options, "images", *(column.title for column in columns)]
    left = [
        [name, *(_value(values[place]) for values in options.values()), str(record["images"])]
        for place, (name, record) in enumerate(found.items())
    ]
    if form == "csv":
        note(images)
        figures = [[column.value(record) for column in columns] for record in found.values()]
        return comma_separated(head, [[*a, *b] for a, b in zip(left, figures, strict=True)])
    cells = [_cells(column, found.values()) for column in columns]
    texts = [list(row) for row in zip(*cells, strict=True)]
    best = {
        (y, x + len(left[0]))
        for y, row in enumerate(texts)
        for x, text in enumerate(row)
        if text.endswith("*")
    }
    rows = [a + [text.rstrip("* ") for text in b] for a, b in zip(left, texts, strict=True)]
    if form == "markdown":
        return f"{markdown(head, rows, best)}\n\n{images}"
    return f"% {images} Needs the package booktabs.\n{latex(head, rows, best)}"


def _value(value: Any) -> str:
    return "-" if value is None else typed(value) or "none"


def _images(protocol: Mapping[str, Any], data: str) -> str:
    """The images of a protocol in words."""
    which = {"heldout": "Held-out images", "train": "Training images"}
    return (
        f"{which.get(protocol['split'], 'Images')} of {data or protocol['data']} at "
        f"{protocol['resolution']} px."
    )


def _print(found: dict[str, dict[str, Any]], images: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = _columns(found.values())
    right = [
        Column(title, justify="right", no_wrap=True)
        for title in ("images", *(column.title for column in columns))
    ]
    table = Table(
        Column("model", overflow="fold"), *right, box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    cells = [_cells(column, found.values()) for column in columns]
    if options := _differing(found):
        names = [Column(name, overflow="fold") for name in found]
        options_table = Table("differs", *names, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        for option, values in options.items():
            options_table.add_row(Text(option), *(Text(_value(value)) for value in values))
    for (name, record), texts in zip(found.items(), zip(*cells, strict=True), strict=True):
        marked = [Text(text, "bold" if text.endswith("*") else "") for text in texts]
        table.add_row(Text(name), str(record["images"]), *marked)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    if options:
        console.print(options_table)
    console.print(table)
    console.print(
        f"{images} * marks the best figure of a column; "
        "use N: share of the codes of level N in use, level 0 is the finest."
    )
    for each in dict.fromkeys(each for record in found.values() for each in notes_of(record)):
        console.print(each)


def _cells(column: _Column, records: Iterable[dict[str, Any]]) -> list[str]:
    """The cells of a column: a star marks each best figure, unless all are equal."""
    values = [column.value(record) for record in records]
    texts = ["-" if value is None else f"{value:{column.form}}" for value in values]
    known = [value for value in values if value is not None]
    if len(set(texts) - {"-"}) < 2:
        return [f"{text} " for text in texts]
    best = f"{(min if column.lowest else max)(known):{column.form}}"
    return [f"{text}*" if text == best else f"{text} " for text in texts]
