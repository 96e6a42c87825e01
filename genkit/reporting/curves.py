"""Curves of the metrics of runs, drawn over one another by Bokeh."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from genkit.evaluation.figures import shown
from genkit.run.metrics import flat
from genkit.run.overview import Overview

# Legible on white, and told apart by most people who cannot see all colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")

_TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradient",
    "clipped": "share of clipped steps",
    "skipped": "skipped steps",
    "images_per_second": "images per second",
    "waiting": "share of the time spent waiting for data",
    "memory_mb": "peak memory, MB",
}
_LAST = ("lr", "gradient_norm", "images_per_second", "waiting", "memory_mb", "clipped", "skipped")
_OF_LEVELS = re.compile(r"levels/(\d+)/(usage|perplexity)")
_COUNTED = (
    "Each point counts the codes of the images since the last point, or of the held-out images; "
    "fewer images use fewer codes."
)


class Curve(NamedTuple):
    """A plot, and what to know about its points; often nothing."""

    plot: Any
    note: str


class Line(NamedTuple):
    """A figure of a run by step."""

    steps: list[int]
    values: list[float]


def colour(number: int) -> str:
    """The colour of the run with a number."""
    return COLOURS[number % len(COLOURS)]


def curves(runs: Sequence[Overview]) -> list[Curve]:
    """A plot for each figure that a run logs: a line per run, dashed for held-out images."""
    lines = [_lines(run) for run in runs]
    names = dict.fromkeys(key.removeprefix("validation/") for found in lines for key in found)
    titles = _titles(runs, names)
    return [
        Curve(
            _plot(
                titles[name],
                [run.path.name for run in runs],
                [found.get(name) for found in lines],
                [found.get(f"validation/{name}") for found in lines],
            ),
            _COUNTED if _OF_LEVELS.fullmatch(name) else "",
        )
        for name in titles
    ]


def _lines(run: Overview) -> dict[str, Line]:
    """The lines of a run by their keys, without figures that are always 0."""
    found: dict[str, Line] = {}
    for row in run.rows:
        for key, value in flat(row).items():
            line = found.setdefault(key, Line([], []))
            line.steps.append(int(row["step"]))
            line.values.append(float(value))
    return {
        key: line
        for key, line in found.items()
        if any(line.values) and _is_curve(key, shown(run.validation))
    }


def _is_curve(key: str, measured: Collection[str]) -> bool:
    name = key.removeprefix("validation/")
    if "/" in name:
        return _OF_LEVELS.fullmatch(name) is not None
    return name in measured if name != key else name != "step"


def _titles(runs: Sequence[Overview], names: dict[str, None]) -> dict[str, str]:
    """The titles of plots by name, in the order of the page."""
    known = dict(_TITLES)
    for run in runs:
        for key, how in shown(run.validation).items():
            known[key] = f"{how.label}, {how.unit}" if how.unit else how.label
    for name in names:
        if of_level := _OF_LEVELS.fullmatch(name):
            what = "share of codes in use" if of_level[2] == "usage" else "perplexity"
            known[name] = f"level {of_level[1]}: {what}"
    measured = [key for run in runs for key in shown(run.validation)]
    first = [name for name in measured if name in names]
    last = [name for name in _LAST if name in names]
    order = dict.fromkeys([*first, "loss", *names])
    middle = [name for name in order if name in names and name not in last]
    return {name: known.get(name, name.replace("_", " ")) for name in [*middle, *last]}


def _plot(
    title: str,
    names: Sequence[str],
    trained: Sequence[Line | None],
    held_out: Sequence[Line | None],
) -> Any:
    plot = figure(
        title=title,
        x_axis_label="step",
        y_axis_label=title,
        height=260,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
    )
    plot.toolbar.autohide = True
    plot.add_tools(
        HoverTool(tooltips=[("run", "@run"), ("step", "@step"), (title, "@value{0.0000 a}")])
    )
    drawn = list(_drawn(trained, held_out))
    # Around a single point Bokeh shows a range of 2, whatever the value.
    plot.x_range.default_span = max(2, *(line.steps[-1] for _, _, line in drawn))
    plot.y_range.default_span = max(abs(line.values[-1]) for _, _, line in drawn) or 1
    for number, held, line in drawn:
        source = ColumnDataSource(
            {
                "step": line.steps,
                "value": line.values,
                "run": [names[number] + " held out" * held] * len(line.steps),
            }
        )
        how: dict[str, Any] = {"source": source, "color": colour(number), "name": f"run-{number}"}
        plot.line("step", "value", line_dash="dashed" if held else "solid", width=2, **how)
        if held or len(line.steps) == 1:
            fill = "white" if held else colour(number)
            plot.scatter("step", "value", size=6, fill_color=fill, line_width=1.5, **how)
    return plot


def _drawn(
    trained: Sequence[Line | None], held_out: Sequence[Line | None]
) -> Iterator[tuple[int, bool, Line]]:
    for number, pair in enumerate(zip(trained, held_out, strict=True)):
        for held, line in enumerate(pair):
            if line:
                yield number, bool(held), line
