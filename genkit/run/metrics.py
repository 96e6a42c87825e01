"""The rows of a run's metrics.jsonl; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, oldest first; none if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # The run was killed while it wrote this line.
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A row's numbers under names such as `validation/psnr` and `levels/0/usage`."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found |= flat({str(name): item for name, item in value.items()}, f"{prefix}{key}/")
        elif value is not None and not isinstance(value, str):
            found[f"{prefix}{key}"] = value
    return found
