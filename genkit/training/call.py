"""Training from Python: the part that is the same for every task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genkit.data.given import register_data
from genkit.errors import OptionError
from genkit.files import CONFIG
from genkit.run.config import newest_directory
from genkit.run.options import TrainingOptions
from genkit.run.toml import read_config
from genkit.settings import resolve
from genkit.training import loop
from genkit.training.task import Build


def called(
    task: Build,
    kind: type[TrainingOptions],
    settings: Mapping[str, Any] | None,
    *,
    presets: str | None,
    out: str | os.PathLike[str] | None,
    data: Any,
    on_row: Callable[[Mapping[str, Any]], object] | None,
    resume: bool,
) -> Path:
    """Train a task with a run of a `kind`.

    Returns the run directory. `KeyboardInterrupt` after Ctrl-C, once everything is saved.
    """
    lower = []
    if resume:
        directory = Path(out) if out is not None else newest_directory(kind=kind)
        lower, out = [read_config(directory / CONFIG)], directory
    elif out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("several processes need one run directory: give out")
    upper = dict(settings or {})
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    if data is not None:
        upper["data"] = data if isinstance(data, str | Mapping) else register_data(data)
    watch = _Rows(on_row)
    run = resolve(kind, kind.layered(presets, *lower, upper))
    if loop.train(task, run, Path(out) if out is not None else None, watch, resume=resume):
        raise KeyboardInterrupt(
            f"training was interrupted; resume=True continues {watch.directory}"
        )
    return watch.directory if out is None else Path(out)


class _Rows:
    """Passes rows of metrics on and shows nothing."""

    def __init__(self, on_row: Callable[[Mapping[str, Any]], object] | None) -> None:
        self.on_row = on_row
        self.directory = Path()

    def begin(self, run: TrainingOptions, directory: Path, *facts: Any) -> None:
        self.directory = directory

    def prepare(self, what: str, done: int, total: int) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def row(self, row: Mapping[str, Any], losses: Sequence[str]) -> None:
        if self.on_row:
            self.on_row(row)

    def end(self, directory: Path, step: int, done: bool) -> None:
        pass
