"""Charts of codes and of errors, drawn by Bokeh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
)
from bokeh.palettes import Turbo256
from bokeh.plotting import figure
from torch import Tensor

from genkit.images import Pixels
from genkit.reporting.looks import Codes

_BAR = "#0072b2"
# Colours of maps of indices.
COLOURS = len(Turbo256)
# Pictures in a row of a sheet of codes, and the sheet's width before it is scaled.
_COLUMNS, _SHEET = 32, 1260
# Labels of a logarithmic axis, at most.
_TICKS = 8


def errors(decibels: Sequence[float], names: Sequence[str]) -> Any:
    """The PSNR of each image, worst first."""
    plot = _figure("Error by image, worst first", "image, by rank", "PSNR, dB", 220)
    rank = list(range(1, len(decibels) + 1))
    source = ColumnDataSource({"rank": rank, "psnr": decibels, "name": names})
    plot.scatter("rank", "psnr", source=source, color=_BAR, size=7)
    plot.add_tools(HoverTool(tooltips=[("image", "@name"), ("PSNR", "@psnr{0.00} dB")]))
    return plot


def usage(counts: Tensor, level: int, title: str) -> Any:
    """How often the codes of a level's codebooks are used, counts `[Q, K]`, the most used first."""
    order = counts.flatten().argsort(descending=True, stable=True)
    sorted_counts = counts.flatten()[order].tolist()
    plot = _figure(
        f"Level {level}: {title}", "code, by rank; no bar: never used", "uses (logarithmic)", 240,
        y_axis_type="log",
    )  # fmt: skip
    used = [count for count in sorted_counts if count]
    source = ColumnDataSource(
        {
            "rank": list(range(1, len(used) + 1)),
            "count": used,
            "code": (order % counts.shape[1])[: len(used)].tolist(),
            "codebook": (order // counts.shape[1])[: len(used)].tolist(),
        }
    )
    mean = float(counts.double().mean())
    lowest, highest = min(0.5, mean / 2), 1.3 * max(sorted_counts)
    bars = plot.vbar(
        x="rank", top="count", bottom=lowest, width=1, source=source, fill_color=_BAR,
        line_color=None,
    )  # fmt: skip
    plot.line([1, len(sorted_counts)], [mean, mean], color="black", legend_label=f"mean {mean:.3g}")
    plot.y_range.start, plot.y_range.end = lowest, highest
    plot.yaxis.ticker = FixedTicker(ticks=ticks(lowest, highest), minor_ticks=[])
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0.[000]")
    plot.x_range.start, plot.x_range.end = 0, len(sorted_counts) + 1
    several = [("codebook", "@codebook")] if len(counts) > 1 else []
    plot.add_tools(
        HoverTool(renderers=[bars], tooltips=[("code", "@code"), *several, ("uses", "@count")])
    )
    return plot


def ticks(lowest: float, highest: float) -> list[float]:
    """Values between two others for a logarithmic axis: 1, 2, 5, 10, …, or 1, 10, 100, …."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    for steps in ((1, 2, 5), (1,)):
        every = [float(f"{step}e{power}") for power in powers for step in steps]
        found = [value for value in every if lowest < value <= highest]
        if len(found) <= _TICKS:
            break
    return found


def sheet(codes: Codes, counts: Tensor, level: int) -> Any:
    """The pictures of a level's codes in rows, the most used first; counts `[Q, K]`."""
    count = len(codes.numbers)
    rows = -(-count // _COLUMNS)
    plot = _figure(
        f"Level {level}: {_which(count, counts)}", "column", "row", 40 + rows * 39, frame=False
    )
    # On a narrow screen, the pictures stay squares.
    plot.sizing_mode, plot.width = "scale_width", _SHEET
    x = [number % _COLUMNS for number in range(count)]
    y = [-(number // _COLUMNS) - 1 for number in range(count)]
    plot.image_rgba(image=[_rgba(each) for each in codes.pictures], x=x, y=y, dw=0.92, dh=0.92)
    source = ColumnDataSource(
        {
            "x": [each + 0.46 for each in x],
            "y": [each + 0.46 for each in y],
            "code": codes.numbers,
            "count": codes.counts,
        }
    )
    boxes = plot.rect("x", "y", 0.92, 0.92, source=source, fill_alpha=0, line_color=None)
    plot.add_tools(HoverTool(renderers=[boxes], tooltips=[("code", "@code"), ("uses", "@count")]))
    return plot


def _which(count: int, counts: Tensor) -> str:
    """The codes that `count` pictures show, in words; their counts are `[Q, K]`."""
    size, used = counts.shape[1], int(counts[0].count_nonzero())
    which = (
        f"all {size} codes"
        if count == size
        else f"the {count}{' most' if count < used else ''} used of {size} codes"
    )
    return which if len(counts) == 1 else f"{which} of the first codebook"


def index_map(indices: Tensor, codes: int, level: int) -> Any:
    """The indices `[h, w]` of an image, codes with near numbers in near colours."""
    values = indices.numpy()
    rows, columns = values.shape
    plot = figure(
        title=f"level {level}: {rows} x {columns} indices",
        width=260,
        height=int(40 + 240 * rows / columns),
        x_range=(0, columns),
        y_range=(0, rows),
        tools="",
        toolbar_location=None,
    )
    _without_frame(plot)
    mapper = LinearColorMapper(palette=list(Turbo256), low=0, high=codes - 1)
    plot.image(image=[np.flipud(values)], x=0, y=0, dw=columns, dh=rows, color_mapper=mapper)
    plot.add_tools(HoverTool(tooltips=[("code", "@image")]))
    return plot


def index_colours(indices: Tensor, codes: int) -> Pixels:
    """The colours `[h, w, 3]` that `index_map` gives indices `[h, w]`."""
    palette = np.array([[*bytes.fromhex(colour[1:])] for colour in Turbo256], np.uint8)
    scaled = indices.cpu().numpy() * len(palette) // max(1, codes - 1)
    return palette[scaled.clip(0, len(palette) - 1)]


def _figure(title: str, x: str, y: str, height: int, frame: bool = True, **how: Any) -> Any:
    plot = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        x_axis_label=x,
        y_axis_label=y,
        **how,
    )
    plot.toolbar.autohide = True
    if not frame:
        _without_frame(plot)
    return plot


def _without_frame(plot: Any) -> None:
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None


def _rgba(picture: Pixels) -> np.ndarray[Any, Any]:
    """uint32 `[H, W]`, bottom row first, as Bokeh takes pictures."""
    colours = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].repeat(3, -1)
    solid = np.dstack([colours, np.full(picture.shape[:2], 255, np.uint8)])
    return np.flipud(np.ascontiguousarray(solid).view(np.uint32)[..., 0])
