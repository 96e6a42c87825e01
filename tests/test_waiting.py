"""The share of the time that a run waits for its data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from genkit_cli.progress import Progress

import genkit
from genkit.run.options import layered, resolve_run
from genkit.training.task import Summary


@pytest.mark.parametrize(("device", "warnings"), [("cuda", 1), ("cpu", 0)])
def test_a_gpu_that_waits_for_its_data_is_warned_of_once(
    device: str, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    facts = {"device": device, "processes": 1, "parameters": 1, "unreadable": {}, "idle": 0}
    facts |= {"passed_over": [], "changed": [], "resumed": False}
    run = resolve_run(layered(None, {"steps": 5}))
    progress.begin(run, Path("run"), 0, Summary("a model", "images", "images", 9, 3), facts)
    # In the first row the readers start.
    for step, waiting in enumerate((0.9, 0.1, 0.5, 0.6), 1):
        progress.row({"step": step, "lr": 0.1, "waiting": waiting}, [])
    told = "Warning: training waits for its data during 50% of the time: try more --workers"
    assert capsys.readouterr().out.count(told) == warnings


def test_rows_say_how_long_a_run_waited(tmp_path: Path) -> None:
    """A data set that is slow to read."""

    class Slow:
        fingerprint, channels, classes, problems = "slow", 3, (), {}

        def split(self, name: str) -> Slow:
            return self

        def __len__(self) -> int:
            return 16

        def name(self, number: int) -> str:
            return str(number)

        def images(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> Any:
            time.sleep(0.2 if seeds else 0)
            return np.zeros((len(numbers), 32, 32, 3), dtype=np.uint8)

    found: list[Any] = []
    settings = {name: value for name, value in TINY.items() if name != "data"}
    genkit.train({**settings, "steps": 4}, data=Slow(), out=tmp_path / "run", on_row=found.append)
    assert all(0.05 < row["waiting"] < 1 for row in found)
