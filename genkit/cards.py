"""The parts that the cards of published models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genkit.run.metrics import read_rows
from genkit.size import Size

# The hub's task that the figures of each kind of model are about.
TASKS = {
    "image-tokenizer": ("image-to-image", "Reconstruction"),
    "image-generation": ("unconditional-image-generation", "Likelihood"),
}


def given(local: Sequence[str]) -> str:
    """The flags that a repeated run needs as well: options specific to the original machine."""
    flags = [f"`--{key.replace('_', '-')}`" for key in local if not key.startswith("data.")]
    return f" and {' and '.join(flags)}" if flags else ""


def left_out(whole: Mapping[str, Any], published: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted names of options that have a value but are not published."""
    names = []
    for key, value in whole.items():
        if isinstance(value, Mapping):
            names += left_out(value, published.get(key, {}), f"{path}{key}.")
        elif key not in published and value:
            names.append(f"{path}{key}")
    return names


def distributions(parts: Mapping[str, Any]) -> set[str]:
    """The distributions of parts, and of the parts among their options."""
    found = set()
    for part in parts.values():
        if isinstance(part, Mapping):
            found |= {str(part.get("distribution", "")), *distributions(part["options"])}
    return found - {""}


def component(part: Mapping[str, Any]) -> tuple[str, str]:
    """The name and the options of a part."""
    options = [
        f"{key} {text(value)}" if not isinstance(value, Mapping) else f"{key} {_nested(value)}"
        for key, value in part["options"].items()
    ]
    return f"`{part['name']}`", ", ".join(options)


def _nested(part: Mapping[str, Any]) -> str:
    name, options = component(part)
    return f"{name} ({options})" if options else name


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: Any) -> str:
    """An option's value."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash without one."""
    return "-" if value is None else f"{value:.{digits}f}"


def last_picture(folder: Path) -> Path | None:
    """The picture of the last step in a folder of a run, if there is one."""
    pictures = folder.glob("step-*.png")
    return max(pictures, key=lambda path: (len(path.name), path.name), default=None)


def head(name: str, tag: str, data: str, figures: Sequence[tuple[str, str, float]]) -> str:
    """The metadata of a card. The hub reads `figures` from it: key, name and value of each.

    `tag` is the kind of model, `data` the data set with the size of its images.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task, task_name = TASKS[tag]
    results = [
        EvalResult(
            task_type=task,
            task_name=task_name,
            dataset_type=data.partition(",")[0],
            dataset_name=data,
            metric_type=key,
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for key, metric, value in figures
    ]
    card = ModelCardData(
        library_name="genkit",
        tags=["genkit", tag, "vector-quantization"],
        model_name=name.partition("/")[2],
        eval_results=results or None,
    )
    return card.to_yaml()


def at(picture: Path) -> str:
    """The step of a picture of a run."""
    return f" at step {int(picture.stem.removeprefix('step-'))}"


def last_validation(path: Path, step: int | None = None) -> dict[str, Any]:
    """The last row with a validation in a run's metrics; empty without one.

    Given a `step` it is the row of that step, if it has a validation.
    """
    last: dict[str, Any] = {}
    for row in reversed(read_rows(path)):
        if row.get("validation"):
            last = last or row
            if step in (None, row["step"]):
                return row
    return last


def size(resolution: object) -> str:
    """A recorded resolution as height x width."""
    found = Size.of(resolution)
    return f"{found.height} x {found.width}" if found else "unknown size"
