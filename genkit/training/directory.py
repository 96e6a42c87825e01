"""The run directory: config, metrics, samples, model and the checkpoints to resume from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from genkit.errors import TrainingError
from genkit.files import write_text
from genkit.images import Pixels, save_png
from genkit.metadata import MODEL
from genkit.training.config import CONFIG


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
        started = self.config.exists() and (self.model.exists() or self.checkpoints.exists())
        if started:
            raise TrainingError(
                f"'{self.path}' holds a run already: "
                "add --resume to go on with it, or choose another --out"
            )

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """Write the config, and drop the metrics of steps after `step`, which will come again."""
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

    def picture(self, kind: str, step: int, picture: Pixels) -> None:
        """Write a picture of a step, such as `samples/step-000500.png`."""
        save_png(self.path / kind / f"step-{step:06d}.png", picture)

    def name_unreadable(self, problems: Mapping[str, str]) -> None:
        """Name the files that could not be read and why, one a line."""
        if problems:
            write_text(
                self.path / "unreadable.txt",
                "".join(f"{name}: {why}\n" for name, why in sorted(problems.items())),
            )

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for line in (
            self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        ):
            try:
                rows.append(json.loads(line))
            except ValueError:  # The last line of a run that was killed while writing it.
                continue
        return rows
