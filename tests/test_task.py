"""The loop trains any task: a tiny second task goes through everything that a tokenizer's does."""

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
from curve import Curve, curve_run

from genkit.errors import OptionError, TrainingError
from genkit.training import learner
from genkit.training.loop import train
from genkit.training.meeting import meeting
from genkit.training.replay import failed_step, replay

SCRIPT = Path(__file__).with_name("curve.py")


def fitted(out: Path, reporter: Silent | None = None, resume: bool = False, **changes: Any) -> bool:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(Curve, curve_run(**changes), out, reporter or Silent(), resume=resume)


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


def test_it_learns_and_logs_it(tmp_path: Path) -> None:
    reporter = Silent()
    assert fitted(tmp_path / "run", reporter)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [10, 20, 30, 40, 50, 60]
    assert found[-1]["seen"] == 60 * 2 * 16
    assert found[-1]["points_per_second"] > 0
    assert found[-1]["validation"]["error"] < 0.6 * found[1]["validation"]["error"]
    assert reporter.losses == ["loss", "fit"]
    assert reporter.done


def test_interrupted_or_killed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    fitted(tmp_path / "whole")
    assert not fitted(tmp_path / "parts", InterruptAt(23))
    assert fitted(tmp_path / "parts", resume=True)
    assert ended(started("--kill", "33", tmp_path / "killed")) == [-signal.SIGKILL]
    assert fitted(tmp_path / "killed", resume=True)
    for name in ("parts", "killed"):
        assert same(weights(tmp_path / name), weights(tmp_path / "whole"))
        assert comparable(tmp_path / name) == comparable(tmp_path / "whole")
    with pytest.raises(OptionError, match="--width would make it another run"):
        fitted(tmp_path / "whole", resume=True, steps=70, width=9)


@pytest.mark.slow
def test_two_processes_train_it_together(tmp_path: Path) -> None:
    meet = meeting(2)
    both = [
        started(tmp_path / "run", **meet, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
    ]
    assert ended(*both) == [0, 0]
    found = rows(tmp_path / "run")
    assert found[-1]["validation"]["error"] < 0.6 * found[1]["validation"]["error"]


def test_a_nan_step_is_skipped_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    losses = Curve.losses

    def once(self: Curve, batch: Any, step: int) -> Any:
        nonlocal calls
        calls += 1
        passed = losses(self, batch, step)
        return (
            passed
            if calls != 30
            else type(passed)({"fit": passed.losses["fit"] * torch.nan}, {}, 1)
        )

    monkeypatch.setattr(Curve, "losses", once)
    fitted(tmp_path / "run")
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [0, 1, 0, 0, 0, 0]
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_failure_is_replayed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row were skipped.*genkit replay"):
        fitted(tmp_path / "run", lr=1e30, clip=0, warmup=0, max_skipped=3)
    step, state = failed_step(tmp_path / "run")
    assert [list(batch) for batch in state["batches"]] == [["x", "y"]] * 2
    AcceleratorState._reset_state(reset_partial_state=True)
    found = replay(Curve, curve_run(lr=1e30, clip=0, warmup=0), tmp_path / "run", step, state)
    assert found["failed"]
    assert found["now"] == found["then"]


def test_the_training_loop_does_not_know_tokenizers() -> None:
    folder = Path(learner.__file__).parent
    for name in ("loop", "session", "trainer", "learner", "task", "meter"):
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not {word for word in ("tokenizer", "codebook", "discriminator") if word in text}
