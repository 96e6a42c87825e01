"""The runs of a report, and where its page is written. It does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from genkit.errors import OptionError, TrainingError
from genkit.files import REPORT, check_place
from genkit.run.overview import Overview


def chosen(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
) -> list[Overview]:
    """One or several run directories.

    `OptionError` for none and for the same one twice, `TrainingError` for a folder without metrics
    of a run.
    """
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not paths:
        raise OptionError("name at least one run directory")
    found = [Overview.of(path) for path in paths]
    seen = set[Path]()
    for run in found:
        if (real := run.path.resolve()) in seen:
            raise OptionError(f"'{run.path}' is named twice: name every run once")
        seen.add(real)
        if not run.rows:
            raise TrainingError(f"'{run.path}' has no metrics yet: train it first")
    return found


def page_place(runs: Sequence[Overview], out: str | os.PathLike[str] | None) -> Path:
    """Where a page is written; `GenkitError` if it cannot be written there."""
    folder = runs[0].path if len(runs) == 1 else Path()
    path = folder / REPORT if out is None else Path(out)
    check_place(path)
    return path
