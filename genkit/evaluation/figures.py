"""Display of figures: label, digits and better direction per metric. It does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from genkit.interfaces import Metric


class Shown(NamedTuple):
    """How to display a metric's figure: label, better direction, digits and unit."""

    label: str
    better: str
    decimals: int
    unit: str = ""

    def text(self, value: float | None) -> str:
        """The figure with its unit; None is a dash."""
        return "-" if value is None else f"{value:.{self.decimals}f} {self.unit}".rstrip()


# The core's metrics. Records hold their figures without a description, so that old records are
# displayed like new ones.
BUILT_IN: Mapping[str, Shown] = {
    "psnr": Shown("PSNR", "higher", 3, "dB"),
    "ssim": Shown("SSIM", "higher", 4),
    "mae": Shown("MAE", "lower", 5),
    "mae_over_variance": Shown("MAE/var", "lower", 4),
}


# The figures of a prior.
_OF_PRIORS: Mapping[str, Shown] = {
    "bits_per_pixel": Shown("bits per pixel", "lower", 4),
    "nats": Shown("nats per index", "lower", 4),
}


def how_shown(metric: Metric, name: str, key: str) -> dict[str, Any]:
    """The `Shown` fields for the entry `key` of the metric `name`, from its attributes."""
    part = key.removeprefix(name).strip("_")
    if (described := getattr(metric, "parts", {}).get(part)) is not None:
        return Shown(*described)._asdict()
    label = f"{metric.label} {part}".strip()
    unit = getattr(metric, "unit", "")
    return Shown(label, metric.better, metric.decimals, unit)._asdict()


def shown(record: Mapping[str, Any]) -> dict[str, Shown]:
    """How to display each figure of a record or a validation, by key."""
    further = {
        key: Shown(*(entry[field] for field in Shown._fields))
        for key, entry in record.get("metrics", {}).items()
    }
    return {**BUILT_IN, **(_OF_PRIORS if "nats" in record else {}), **further}


def labelled(record: Mapping[str, Any]) -> Iterator[str]:
    """Every figure of a record or a validation as text, such as `PSNR 25.123 dB`."""
    for key, how in shown(record).items():
        if key in record:
            yield f"{how.label} {bound(record, key)}{how.text(record[key])}"


def bound(record: Mapping[str, Any], key: str) -> str:
    """The sign before a figure: `≤ ` if an inexact prior knows an upper bound alone."""
    return "≤ " if key in _OF_PRIORS and not record.get("exact", True) else ""


def result_of(name: str, metric: Metric) -> tuple[dict[str, float | None], dict[str, Any]]:
    """A metric's figures by their keys in a record, and how to display each."""
    entries = keyed(name, metric.result())
    return entries, {key: {"metric": name, **how_shown(metric, name, key)} for key in entries}


def keyed(name: str, result: float | Mapping[str, float | None] | None) -> dict[str, float | None]:
    """A metric's result as entries of a record: one with the metric's name, or several.

    A result with parts, such as `{"fid": 3.1}` of a metric `inception`, becomes `inception_fid`.
    """
    if isinstance(result, Mapping):
        return {f"{name}_{part}": _number(value) for part, value in result.items()}
    return {name: _number(result)}


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
