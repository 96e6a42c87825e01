"""Run directories read without torch: options, metrics, state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError, TrainingError
from genkit.evaluation.figures import labelled
from genkit.files import CONFIG, MODEL, is_file, is_folder
from genkit.locking import is_locked
from genkit.run.config import is_run, names_of, newest_change
from genkit.run.metrics import read_rows
from genkit.run.options import TokenizerRun
from genkit.run.toml import read_config
from genkit.settings import key_of


@dataclass(frozen=True)
class Overview:
    """A run directory: its options, and the rows of its metrics, oldest first."""

    path: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Overview:
        """Read a run directory; `TrainingError` if it is no such folder."""
        folder = Path(path)
        if not is_folder(folder) and not is_file(folder):
            raise TrainingError(f"there is no folder '{folder}'")
        if not is_run(folder):
            raise TrainingError(
                f"'{folder}' is not a run directory: it lacks {CONFIG} or metrics.jsonl"
            )
        return cls(folder, read_config(folder / CONFIG), read_rows(folder / "metrics.jsonl"))

    @property
    def kind(self) -> str:
        """The kind of model: `tokenizer` or `prior`."""
        return "tokenizer" if set(self.config) <= names_of(TokenizerRun) else "prior"

    @property
    def step(self) -> int:
        """The last step that metrics were written of."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def steps(self) -> int:
        """The number of steps that the run takes."""
        return int(self.config.get("steps", 0))

    @property
    def state(self) -> str:
        """Whether it is `done`, `running`, `failed` (see `genkit replay`), or `stopped`."""
        if is_locked(self.path):
            return "running"
        if (self.path / MODEL).is_file() and self.step == self.steps:
            return "done"
        return "failed" if (self.path / "failure").is_dir() else "stopped"

    @property
    def validation(self) -> Mapping[str, Any]:
        """The figures of the last validation; empty before the first."""
        found = (row["validation"] for row in reversed(self.rows) if row.get("validation"))
        return next(found, {})

    @property
    def figures(self) -> list[str]:
        """The figures of the last validation as text."""
        return list(labelled(self.validation))

    @property
    def changed(self) -> float:
        """When it was last written to, in seconds since 1970."""
        return newest_change(self.path)


def runs_below(root: Path, refused: Callable[[Path, GenkitError], object]) -> list[Overview]:
    """The runs in a folder and in its folders, at any depth; the newest first.

    Folders inside run directories are not searched. `refused` is called for a run that cannot be
    read, with the reason. `TrainingError` if there is no such folder.
    """
    if not root.is_dir():
        raise TrainingError(f"there is no folder '{root}'")
    found = []
    for folder, inner, _ in os.walk(root):
        if is_run(folder):
            inner.clear()
            try:
                found.append(Overview.of(folder))
            except GenkitError as error:
                refused(Path(folder), error)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
    return sorted(found, key=lambda run: run.changed, reverse=True)


def options(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Options by dotted name; a component stands under the name of its part."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= options(value, (*path, key))
        else:
            found[key_of((*path, key)).removesuffix(".name")] = value
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options that differ between configs, each with its value in every config.

    The value is None in a config that does not have the option.
    """
    every = [options(config) for config in configs]
    names = dict.fromkeys(name for each in every for name in each)
    values = {name: [each.get(name) for each in every] for name in names}
    return {name: found for name, found in values.items() if any(v != found[0] for v in found)}
