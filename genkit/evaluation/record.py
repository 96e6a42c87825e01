"""Records of figures, and whether two of them can be compared.

A *record* is the output of `genkit evaluate --json`: figures and what they were measured on. Its
`protocol` says which images were measured and how.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError
from genkit.evaluation.figures import BUILT_IN

SCHEMA = 1

# The entries of a protocol that must be equal. The others explain why pixels differ.
_DECISIVE = ("evaluation", "resolution", "pixels")
_HASHES = ("fingerprint", "files", "pixels")
_WORDS = {
    "evaluation": "version of the evaluation's arithmetic",
    "data": "data set",
    "asked": "images asked for",
    "found": "images found",
    "fingerprint": "fingerprint of the data set",
    "files": "hash of the list of files",
    "pixels": "hash of the images' pixels",
}
_FORM = {
    "images": int,
    **dict.fromkeys(BUILT_IN, int | float | None),
    "bits_per_pixel": int | float,
    "levels": list,
    "protocol": dict,
    "versions": dict,
    "model": dict,
    "device": str,
    "precision": str,
}
# The names of a record's own entries. A metric cannot use them.
KEYS = {*_FORM, "schema", "unreadable", "batch_size", "metrics", "classes", "measured"}


def read_record(path: Path) -> dict[str, Any]:
    """Read a record. Raises `GenkitError` if the file is damaged or not a record."""
    again = "write one with genkit evaluate CHECKPOINT --out FILE.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GenkitError(f"'{path}' cannot be read: {error.strerror}; {again}") from error
    except (ValueError, RecursionError):
        raise GenkitError(f"'{path}' is damaged or not JSON: {again}") from None
    if not isinstance(record, dict) or not {"psnr", "protocol"} <= record.keys():
        raise GenkitError(f"'{path}' is JSON, but not a record of figures: {again}")
    if "nats" in record:
        raise GenkitError(
            f"'{path}' holds the figures of a prior, and genkit compare compares tokenizers: "
            "set the figures of genkit evaluate side by side"
        )
    schema = record.get("schema")
    if schema is None:
        raise GenkitError(
            f"'{path}' was written by an older genkit and lacks what a comparison needs: {again}"
        )
    if type(schema) is not int or schema > SCHEMA:
        raise GenkitError(
            f"'{path}' has schema {schema!r}; this genkit reads up to {SCHEMA}: use a newer genkit"
        )
    if wrong := _malformed(record):
        raise GenkitError(f"'{path}' is damaged: it has no usable '{wrong}'; {again}")
    return record


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The differences of two protocols, with both values; empty if figures can be compared.

    Options that change no pixel do not count. Hashes are listed only if nothing else differs.
    """
    if all(one.get(key) == other.get(key) for key in _DECISIVE):
        return []
    a, b = dict(_flat(one)), dict(_flat(other))
    found = [
        (_WORDS.get(key, key), a.get(key), b.get(key))
        for key in {**a, **b}
        if a.get(key) != b.get(key)
        and key not in _HASHES
        # Options of different data sets always differ.
        and (one.get("data") == other.get("data") or not key.startswith("option "))
    ]
    return found or [
        (_WORDS[key], str(one.get(key))[:20], str(other.get(key))[:20])
        for key in _HASHES
        if one.get(key) != other.get(key)
    ]


def circumstances(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Differing versions, device, precision and batch size of two records, with both values."""
    for key in {**one["versions"], **other["versions"]}:
        yield from _unlike(key, one["versions"].get(key), other["versions"].get(key))
    for key in ("device", "precision"):
        yield from _unlike(key, one[key], other[key])
    # Older records have no batch size: each image was computed by itself.
    yield from _unlike("batch size", one.get("batch_size", 1), other.get("batch_size", 1))


def unlike_metrics(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The metrics that two records have with different options, and those options of both."""
    ours, theirs = one.get("metrics", {}), other.get("metrics", {})
    found = []
    for key, entry in ours.items():
        if key not in theirs or entry["options"] == theirs[key]["options"]:
            continue
        a, b = entry["options"], theirs[key]["options"]
        unlike = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        found.append(
            (entry["metric"], *({name: each.get(name) for name in unlike} for each in (a, b)))
        )
    return found


def _unlike(key: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if one != other:
        yield key, one, other


def _flat(protocol: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            yield from ((f"option {name}", item) for name, item in value.items())
        else:
            yield key, value


def _malformed(record: Mapping[str, Any]) -> str:
    """The first entry of a record with a wrong type, or an empty text."""
    for key, kind in _FORM.items():
        value = record.get(key, ...)
        if not isinstance(value, kind) or isinstance(value, bool):
            return key
        if isinstance(value, float) and not math.isfinite(value):
            return key
    metrics = record.get("metrics", {})
    if not isinstance(metrics, dict) or not all(map(_describes_metric, metrics.values())):
        return "metrics"
    for key in metrics:
        if not _is_figure(record.get(key, ...)):
            return str(key)
    for level in record["levels"]:
        usage = level.get("usage") if isinstance(level, dict) else None
        if not isinstance(usage, int | float) or not math.isfinite(usage):
            return "levels"
    if any(key not in record["protocol"] for key in (*_DECISIVE, "data", "split")):
        return "protocol"
    model = record["model"]
    sound = isinstance(model.get("fingerprint"), str) and isinstance(model.get("path"), str)
    return "" if sound else "model"


def _is_figure(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value))


def _describes_metric(entry: Any) -> bool:
    """Whether an entry of a record's `metrics` says how to display a figure."""
    if not isinstance(entry, dict):
        return False
    texts = all(isinstance(entry.get(key), str) for key in ("metric", "label", "unit"))
    digits = entry.get("decimals")
    return (
        texts
        and entry.get("better") in ("higher", "lower")
        and type(digits) is int
        and 0 <= digits <= 20
        and isinstance(entry.get("options"), dict)
    )
