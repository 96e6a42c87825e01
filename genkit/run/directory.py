"""The run directory: config, metrics, samples, model and the checkpoints to resume from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from genkit.errors import TrainingError
from genkit.files import CONFIG, MODEL, printable, write_text
from genkit.images import Pixels, save_png
from genkit.locking import locked
from genkit.run.config import changed_options, check_free
from genkit.run.metrics import read_rows
from genkit.run.options import TrainingOptions
from genkit.run.state import load_state
from genkit.run.toml import read_config
from genkit.settings import resolve

# Temporary names of files and folders that were not written completely.
_LEFT = re.compile(
    r"\.(config\.toml|metrics\.jsonl|model\.safetensors|unreadable\.txt|step-\d+(\.png)?)"
    r"(\.\d+)?\.tmp(\.mode)?"
)


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / MODEL
        self.config = path / CONFIG
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.failure = path / "failure"

    def check_free(self) -> None:
        """`TrainingError` if there is a run in the directory."""
        check_free(self.path)

    def changed(self, run: TrainingOptions) -> list[str]:
        """The options that `run` changes in the run of this directory, in words.

        `OptionError` if one of them would make it another run.
        """
        return changed_options(run, resolve(type(run), read_config(self.config)))

    def newest(self) -> tuple[int, dict[str, Any]]:
        """The newest step to resume from, and its state, empty before the first checkpoint."""
        # The folder exists before the first checkpoint; without it, checkpoints were lost.
        if self.checkpoints.is_dir() and not self._steps():
            return 0, {}
        return load_state(self.checkpoints)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the directory; `TrainingError` if one is in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"'{self.path}' cannot be written: {error.strerror}") from error
        held = TrainingError(
            f"another process is training in '{self.path}': "
            "wait until it has ended, or choose another --out"
        )
        # On a read-only file system `begin` reports the error.
        with locked(self.path, held):
            yield

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        """Write the config, and drop the metrics of steps after `step`, which will be repeated.

        Incomplete files of a killed run are deleted.
        """
        for left in [*self.path.glob(".*"), *self.path.glob("*/.step-*")]:
            if _LEFT.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        shutil.rmtree(self.failure, ignore_errors=True)
        self.checkpoints.mkdir(exist_ok=True)
        rows = [row for row in read_rows(self.metrics) if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(self.config, tomli_w.dumps(settings))

    def check_there(self) -> None:
        """`TrainingError` if somebody removed the directory."""
        if not self.config.is_file():
            raise TrainingError(
                f"the run directory '{self.path}' was removed or emptied: nothing more can be saved"
            )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the metrics."""
        self.check_there()
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(f"'{self.metrics}' cannot be written: {error.strerror}") from error

    def picture(self, kind: str, step: int, picture: Pixels) -> None:
        """Write a picture of a step, such as `samples/step-000500.png`."""
        self.check_there()
        save_png(self.path / kind / f"step-{step:06d}.png", picture)

    def name_unreadable(self, problems: Mapping[str, str]) -> None:
        """List the files that could not be read, each with the reason."""
        if problems:
            write_text(
                self.path / "unreadable.txt",
                "".join(
                    printable(f"{name}: {why}") + "\n" for name, why in sorted(problems.items())
                ),
            )

    def _steps(self) -> bool:
        return any(self.checkpoints.glob("step-*"))
