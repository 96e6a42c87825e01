"""The run directory: config, metrics, samples, model and the checkpoints to resume from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from genkit.errors import TrainingError
from genkit.files import write_text
from genkit.images import Pixels, save_png
from genkit.metadata import MODEL

CONFIG = "config.toml"


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / MODEL
        self.config = path / CONFIG
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    def check_free(self) -> None:
        """`TrainingError` if there is a run in the directory."""
        if self.config.exists():
            raise TrainingError(f"'{self.path}' holds a run already: add --resume to go on with it, or choose another --out")

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """Write the config, and drop the metrics of steps after `step`, which will be made again."""
        rows = [row for row in self._rows() if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(self.config, tomli_w.dumps(settings))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the metrics."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(f"'{self.metrics}' cannot be written: {error.strerror}") from error

    def sample(self, step: int, picture: Pixels) -> Path:
        """Write the sample grid of a step and return its path."""
        path = self.path / "samples" / f"step-{step:06d}.png"
        save_png(path, picture)
        return path

    def name_unreadable(self, problems: Mapping[str, str]) -> None:
        """Name the files that could not be read and why, one a line."""
        if problems:
            write_text(self.path / "unreadable.txt", "".join(f"{name}: {why}\n" for name, why in sorted(problems.items())))

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:  # The last line of a run that was killed while writing it.
                continue
        return rows


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, dashes and underscores alike; `TrainingError` says where it is not TOML."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"'{path}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"'{path}' is no TOML file: {error}") from error
    return _underscored(settings)


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, … that is free."""
    number, path = 1, root / name
    while path.exists():
        number, path = number + 1, root / f"{name}-{number + 1}"
    return path


def newest_directory(root: Path = Path("runs")) -> Path:
    """The run below `root` that was written to last."""
    runs = [path.parent for path in root.glob(f"*/{CONFIG}")]
    if not runs:
        raise TrainingError(f"there is no run in '{root}' to resume: name its directory with --out")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in run.iterdir()))


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, Mapping) else value for key, value in settings.items()
    }
