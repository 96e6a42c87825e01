"""`genkit.report`: runs as one page that needs no network."""

from __future__ import annotations

import base64
import io
import math
import os
import re
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
from genkit.data.opening import read_rgb
from genkit.devices import pick_device
from genkit.errors import GenkitError
from genkit.evaluation.figures import bound, shown
from genkit.evaluation.images import evaluation_images, size_of
from genkit.files import MODEL, printable, write_text
from genkit.images import Pixels
from genkit.reporting.charts import errors, index_map, sheet, usage
from genkit.reporting.chosen import chosen, page_place
from genkit.reporting.curves import colour, curves
from genkit.reporting.looks import Looks, decoded_codes, look
from genkit.run.overview import Overview, differing, options
from genkit.settings import typed

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
    `TrainingError` for a folder that holds no run, `OptionError` for the same one twice.
    """
    found = chosen(runs)
    path = page_place(found, out)
    write_text(path, _page(found, images, device))
    return path


def _page(runs: Sequence[Overview], images: int, device: str | None) -> str:
    plots: dict[str, Any] = {}
    numbers = count()

    def placed(plot: Any) -> str:
        name = f"plot-{next(numbers)}"
        plots[name] = plot
        return name

    differing_ = _differing(runs)
    values = {
        "title": ", ".join(run.path.name for run in runs),
        "runs": [_run(run, number, images, device, placed) for number, run in enumerate(runs)],
        "differing": differing_,
        "alike": _alike(runs, bool(differing_)),
        "figures": _figures(runs),
        "curves": [(placed(plot), note) for plot, note in curves(runs)],
        "times": _TIMES,
    }
    # Bokeh refuses to draw nothing.
    script, divs = components(plots) if plots else ("", {})
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
    samples, damaged = _steps(run.path / "samples")
    found = {
        "name": run.path.name,
        "path": str(run.path),
        "kind": run.kind,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "colour": colour(number),
        "options": {name: _typed(value) for name, value in options(run.config).items()},
        "samples": samples,
        "damaged": damaged,
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
        raise GenkitError(f"{MODEL} is missing")
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
            placed(sheet(codes, looks.counts[level], level))
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


def _differing(runs: Sequence[Overview]) -> dict[str, list[str]]:
    """The options that differ between runs of the same kind, with a value per run."""
    found: dict[str, list[str]] = {}
    for kind in dict.fromkeys(run.kind for run in runs):
        alike = [place for place, run in enumerate(runs) if run.kind == kind]
        for name, values in differing([runs[place].config for place in alike]).items():
            row = found.setdefault(name, ["–"] * len(runs))
            for place, value in zip(alike, values, strict=True):
                row[place] = _typed(value)
    return found


def _typed(value: Any) -> str:
    """An option's value; a run that lacks the option has a dash."""
    return "–" if value is None else typed(value) or "none"


def _alike(runs: Sequence[Overview], differ: bool) -> str:
    """A sentence on runs whose options are not compared, or do not differ."""
    kinds = [run.kind for run in runs]
    if len(set(kinds)) == 1:
        return "" if differ else "None: the runs have the same options."
    text = "A tokenizer and a prior have different options; see All options of each run."
    if len(kinds) == len(set(kinds)):
        return text
    if differ:
        return f"{text} Only runs of the same kind are compared here."
    return f"{text} Runs of the same kind have the same options."


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
        rows[how.label] = [
            f"{bound(run.validation, key)}{how.text(run.validation[key])}"
            if key in shown(run.validation) and key in run.validation
            else how.text(None)
            for run in runs
        ]
    rows["bits per pixel without a prior"] = [_plain_bits(run) for run in runs]
    rows["step"] = [f"{run.step} of {run.steps}" for run in runs]
    rows["measured on"] = [_measured_on(run) for run in runs]
    return rows


def _plain_bits(run: Overview) -> str:
    """The bits per pixel of a tokenizer's indices, or of the indices that a prior models."""
    key = "bits_per_pixel" if run.kind == "tokenizer" else "plain_bits_per_pixel"
    bits = run.validation.get(key)
    return "-" if bits is None else f"{bits:.4f}"


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


def _steps(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The pictures `step-N.png` of a folder, at most `_STEPS`, evenly spread; the last is shown.

    Beside them, why others cannot be.
    """
    pictures = {
        int(found[1]): path
        for path in folder.glob("step-*.png")
        if (found := re.fullmatch(r"step-(\d+)\.png", path.name))
    }
    steps, damaged = sorted(pictures), list[str]()
    samples = list[dict[str, Any]]()
    for number in _spread(len(steps), _STEPS):
        path = pictures[steps[number]]
        try:
            uri = _uri(np.asarray(read_rgb(path)))
        except Exception as error:  # Pillow raises many kinds for damaged files.
            damaged.append(printable(f"{path.name} is left out, it cannot be read: {error}."))
        else:
            samples.append({"step": steps[number], "uri": uri})
    return samples, damaged


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
