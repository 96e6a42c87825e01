"""Charts of codes and of errors, drawn by Bokeh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.palettes import Turbo256
from bokeh.plotting import figure
from torch import Tensor

from genkit.images import Pixels
from genkit.reporting.looks import Codes

_BAR = "#0072b2"
# Pictures in a row of a sheet of codes.
_COLUMNS = 32
# Colours of maps of indices.
COLOURS = len(Turbo256)


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
        f"Level {level}: {title}", "code, by rank", "uses (logarithmic; no bar: never used)", 240,
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
    bars = plot.vbar(
        x="rank", top="count", bottom=0.5, width=1, source=source, fill_color=_BAR, line_color=None
    )
    mean = float(counts.double().mean())
    plot.line([1, len(sorted_counts)], [mean, mean], color="black", legend_label="mean")
    plot.x_range.start, plot.x_range.end = 0, len(sorted_counts) + 1
    several = [("codebook", "@codebook")] if len(counts) > 1 else []
    plot.add_tools(
        HoverTool(renderers=[bars], tooltips=[("code", "@code"), *several, ("uses", "@count")])
    )
    return plot


def sheet(codes: Codes, level: int) -> Any:
    """The pictures of a level's codes in rows, the most used first."""
    count = len(codes.numbers)
    rows = -(-count // _COLUMNS)
    plot = _figure(
        f"Level {level}: {count} codes, decoded", "column", "row", 40 + rows * 36, frame=False
    )
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
