"""`genkit.report`: runs as one page that needs no network."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment
from PIL import Image

from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.checkpoint.model import load
from genkit.devices import pick_device
from genkit.errors import GenkitError, OptionError, TrainingError
from genkit.evaluation.figures import shown
from genkit.evaluation.images import evaluation_images, size_of
from genkit.files import MODEL, REPORT, check_place, printable, write_text
from genkit.images import Pixels
from genkit.reporting.charts import errors, index_map, sheet, usage
from genkit.reporting.curves import colour, curves
from genkit.reporting.looks import Looks, decoded_codes, look
from genkit.run.overview import Overview, differing, options

# Pictures of a run by step, at most; reconstructions; images with their indices.
_STEPS, _SHOWN, _MAPS = 20, 24, 3
# Larger pictures than this square, in pixels, are compressed with loss.
_LOSSLESS = 256
# Differences are multiplied by this factor, to be visible.
_TIMES = 4


def report(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    images: int = 64,
    device: str | None = None,
) -> Path:
    """Write a page of one or several run directories, and return its path.

    The page shows curves, options, figures, pictures by step, and for a tokenizer the
    reconstructions of `images` held-out images and its codes. It is one file that needs no network.
    By default it is `report.html` in the run directory, or in this folder for several runs.
    `TrainingError` for a folder that holds no run.
    """
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not paths:
        raise OptionError("name at least one run directory")
    found = [Overview.of(path) for path in paths]
    if without := [run for run in found if not run.rows]:
        raise TrainingError(f"'{without[0].path}' has no metrics yet: train it first")
    place = (
        Path(out) if out is not None else (found[0].path if len(found) == 1 else Path()) / REPORT
    )
    check_place(place)
    write_text(place, _page(found, images, device))
    return place


def _page(runs: Sequence[Overview], images: int, device: str | None) -> str:
    plots: dict[str, Any] = {}
    numbers = count()

    def placed(plot: Any) -> str:
        name = f"plot-{next(numbers)}"
        plots[name] = plot
        return name

    values = {
        "title": ", ".join(run.path.name for run in runs),
        "runs": [_run(run, number, images, device, placed) for number, run in enumerate(runs)],
        "differing": _differing(runs),
        "figures": _figures(runs),
        "curves": [placed(plot) for plot in curves(runs)],
        "times": _TIMES,
    }
    script, divs = components(plots)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("genkit.reporting").joinpath("page.html").read_text(encoding="utf-8")
    )
    bokeh = Resources(mode="inline", components=["bokeh"]).render_js()
    return template.render(**values, bokeh=bokeh, script=script, divs=divs)


def _run(
    run: Overview,
    number: int,
    images: int,
    device: str | None,
    placed: Callable[[Any], str],
) -> dict[str, Any]:
    found = {
        "name": run.path.name,
        "path": str(run.path),
        "kind": run.kind,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "colour": colour(number),
        "options": options(run.config),
        "samples": _steps(run.path / "samples"),
        "caption": "Held-out images above their reconstructions"
        if run.kind == "tokenizer"
        else "Images that the prior draws",
    }
    if run.kind == "tokenizer":
        try:
            found |= _looks(run, images, device, placed)
        except GenkitError as error:  # The data set may be on another machine.
            found["problem"] = printable(f"No reconstructions: {error}.")
    return found


def _looks(
    run: Overview, images: int, device: str | None, placed: Callable[[Any], str]
) -> dict[str, Any]:
    """The pictures and charts of a tokenizer on its held-out images."""
    if not (run.path / MODEL).is_file():
        raise GenkitError("the run has not saved a model yet")
    tokenizer = load(run.path).to(pick_device(device)).eval()
    info = inspect_tokenizer(str(run.path))
    split = evaluation_images(str(run.path), info, None, size_of(info), None).images
    looks = look(tokenizer, split, images)
    title = f"codes in {len(looks.names)} held-out images"
    return {
        "measured": len(looks.names),
        "rows": _rows(looks),
        "errors": placed(errors(looks.decibels, looks.names)),
        "usage": [placed(usage(counts, level, title)) for level, counts in enumerate(looks.counts)],
        "codes": [
            placed(sheet(codes, level))
            for level, codes in enumerate(decoded_codes(tokenizer, looks.counts))
        ],
        "maps": [
            {
                "name": printable(looks.names[place]),
                "picture": _uri(looks.originals[place]),
                "maps": [
                    placed(index_map(_first_codebook(indices[place]), counts.shape[1], level))
                    for level, (indices, counts) in enumerate(
                        zip(looks.indices, looks.counts, strict=True)
                    )
                ],
            }
            for place in _spread(len(looks.names), _MAPS)
        ],
    }


def _rows(looks: Looks) -> list[dict[str, Any]]:
    """Originals, reconstructions and differences, worst first."""
    rows = []
    for place in range(min(_SHOWN, len(looks.names))):
        original, made = looks.originals[place], looks.made[place]
        difference = np.abs(original.astype(int) - made.astype(int)) * _TIMES
        rows.append(
            {
                "name": printable(looks.names[place]),
                "psnr": f"{looks.decibels[place]:.2f} dB",
                "pictures": [
                    _uri(each)
                    for each in (original, made, difference.clip(0, 255).astype(np.uint8))
                ],
            }
        )
    return rows


def _differing(runs: Sequence[Overview]) -> dict[str, list[Any]]:
    """The options that differ between runs of the same kind, with a value per run."""
    found: dict[str, list[Any]] = {}
    for kind in dict.fromkeys(run.kind for run in runs):
        alike = [place for place, run in enumerate(runs) if run.kind == kind]
        for name, values in differing([runs[place].config for place in alike]).items():
            row = found.setdefault(name, [None] * len(runs))
            for place, value in zip(alike, values, strict=True):
                row[place] = value
    return found


def _figures(runs: Sequence[Overview]) -> dict[str, list[str]]:
    """The figures of the last validation and what they were measured on, a row per figure."""
    rows: dict[str, list[str]] = {}
    keys = dict.fromkeys(
        (key, how)
        for run in runs
        for key, how in shown(run.validation).items()
        if key in run.validation
    )
    for key, how in keys:
        rows[how.label] = [how.text(run.validation.get(key)) for run in runs]
    rows["bits per pixel of the indices"] = [
        f"{bits:.4f}"
        if (bits := run.validation.get("bits_per_pixel")) and run.kind == "tokenizer"
        else "-"
        for run in runs
    ]
    rows["step"] = [f"{run.step} of {run.steps}" for run in runs]
    rows["measured on"] = [_measured_on(run) for run in runs]
    return rows


def _measured_on(run: Overview) -> str:
    validation = run.validation
    if not validation:
        return "no validation yet"
    data: Mapping[str, Any] = run.config.get("data", {})
    folder = next((each for each in data.values() if isinstance(each, str) and "/" in each), None)
    size = run.config.get("resolution")
    text = " x ".join(map(str, size)) if isinstance(size, list) else size
    images = validation.get("images", run.config.get("validation_images"))
    where = folder or data.get("name", "the training data")
    return f"{images} held-out images of {where} at {text} px"


def _steps(folder: Path) -> list[dict[str, Any]]:
    """The pictures `step-N.png` of a folder, at most `_STEPS`, evenly spread; the last is shown."""
    pictures = sorted(folder.glob("step-*.png"), key=lambda path: (len(path.name), path.name))
    return [
        {
            "step": int(pictures[place].stem.removeprefix("step-")),
            "uri": _uri(np.asarray(Image.open(pictures[place]))),
        }
        for place in _spread(len(pictures), _STEPS)
    ]


def _spread(total: int, most: int) -> list[int]:
    """At most `most` of `total` places, evenly spread, first and last included."""
    if total <= most:
        return list(range(total))
    return [round(number * (total - 1) / (most - 1)) for number in range(most)]


def _first_codebook(indices: Any) -> Any:
    return indices if indices.ndim == 2 else indices[..., 0]


def _uri(picture: Pixels) -> str:
    """A picture uint8 `[H, W, C]` or `[H, W]` inside the page; a large one loses a little."""
    flat = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    lossless = math.prod(flat.shape[:2]) <= _LOSSLESS**2
    stream = io.BytesIO()
    Image.fromarray(flat).save(stream, format="WEBP", lossless=lossless, quality=90)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
