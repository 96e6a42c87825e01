"""The loop trains any task: two tiny ones go through everything that a tokenizer's does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import InterruptAt, Silent, comparable, rows, same, weights
from tasks import TASKS, WILD, Kind

from genkit.errors import OptionError, TrainingError
from genkit.training import learner
from genkit.training.loop import train
from genkit.training.meeting import meeting
from genkit.training.replay import failed_step, replay

SCRIPT = Path(__file__).with_name("tasks.py")


@pytest.fixture(params=TASKS)
def name(request: pytest.FixtureRequest, trained: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a task."""
    monkeypatch.setenv("TOKENIZER", str(trained))
    chosen: str = request.param
    return chosen


@pytest.fixture
def kind(name: str) -> Kind:
    return TASKS[name]


def fitted(
    kind: Kind, out: Path, reporter: Silent | None = None, resume: bool = False, **changes: Any
) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(kind.task, kind.run(**changes), out, reporter or Silent(), resume=resume)


def ended(*commands: subprocess.Popen[str]) -> list[int]:
    """The exit codes of processes; their errors are printed if the test fails."""
    for each in commands:
        print(each.communicate(timeout=100)[1])
    return [each.returncode for each in commands]


def started(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_learns_and_logs_it(kind: Kind, tmp_path: Path) -> None:
    reporter = Silent()
    assert fitted(kind, tmp_path / "run", reporter) == 0
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [10, 20, 30, 40, 50, 60]
    assert found[-1][f"{reporter.summary.unit}_per_second"] > 0
    assert kind.loss_of_row(found[-1]) < 0.85 * kind.loss_of_row(found[1])
    assert reporter.losses == ["loss", kind.loss]
    assert reporter.prepared[1] == reporter.prepared[2]
    assert reporter.done


@pytest.mark.parametrize(
    "name", ["curve", pytest.param("prior", marks=pytest.mark.slow)], indirect=True
)
def test_interrupted_or_killed_it_ends_with_the_same_bits(
    name: str, kind: Kind, tmp_path: Path
) -> None:
    fitted(kind, tmp_path / "whole")
    assert fitted(kind, tmp_path / "parts", InterruptAt(23)) == signal.SIGINT
    assert fitted(kind, tmp_path / "parts", resume=True) == 0
    assert ended(started("--kill", "33", name, tmp_path / "killed")) == [-signal.SIGKILL]
    assert fitted(kind, tmp_path / "killed", resume=True) == 0
    for each in ("parts", "killed"):
        assert same(weights(tmp_path / each), weights(tmp_path / "whole"))
        assert comparable(tmp_path / each) == comparable(tmp_path / "whole")
    option, value = kind.other
    with pytest.raises(OptionError, match=f"--{option} would make it another run"):
        fitted(kind, tmp_path / "whole", resume=True, steps=70, **{option: value})


@pytest.mark.slow
def test_two_processes_train_it_together(name: str, kind: Kind, tmp_path: Path) -> None:
    meet = meeting(2)
    both = [
        started(name, tmp_path / "run", **meet, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    assert ended(*both) == [0, 0]
    found = rows(tmp_path / "run")
    assert kind.loss_of_row(found[-1]) < 0.85 * kind.loss_of_row(found[1])


def test_a_nan_step_is_skipped_without_a_trace(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    losses = kind.task.losses

    def once(self: Any, batch: Any, step: int) -> Any:
        nonlocal calls
        calls += 1
        passed = losses(self, batch, step)
        if calls != 30:
            return passed
        return type(passed)({kind.loss: passed.losses[kind.loss] * torch.nan}, {}, 1)

    monkeypatch.setattr(kind.task, "losses", once)
    fitted(kind, tmp_path / "run")
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [0, 1, 0, 0, 0, 0]
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_failure_is_replayed(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row were skipped.*genkit replay"):
        fitted(kind, tmp_path / "run", **WILD)
    step, state = failed_step(tmp_path / "run")
    assert len(state["batches"]) == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    run = kind.run(**{key: value for key, value in WILD.items() if key != "max_skipped"})
    found = replay(kind.task, run, tmp_path / "run", step, state)
    assert found["failed"]
    assert found["now"] == found["then"]


def test_the_training_loop_does_not_know_tokenizers() -> None:
    folder = Path(learner.__file__).parent
    for name in ("loop", "session", "trainer", "learner", "task", "meter"):
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not {word for word in ("tokenizer", "codebook", "discriminator") if word in text}
