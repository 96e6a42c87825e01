"""Memory that a run needs late is asked for at once, and a lack of it loses nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Silent, flags, same, tiny_run
from genkit_discriminators.patchgan import PatchGAN
from test_guard import FULL, images, made, tiny, whole_state

from genkit.training import tokenizer as tokenizer_module
from genkit.training.meeting import meeting

LATE: dict[str, Any] = {**FULL, "discriminator_start": 3, "r1_weight": 0.1, "r1_every": 4}


def draws() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


@pytest.mark.parametrize("settings", [{}, {"quantizer": {"update": "gradient"}, "accumulate": 2}])
def test_it_leaves_no_trace(settings: dict[str, Any]) -> None:
    """Not in weights, codes, statistics, gradients and generators, nor in the steps to come."""
    tried, plain = made(LATE, settings), made(LATE, settings)
    for each in (tried, plain):
        for module in each.modules.values():
            module.train()
    before, drawn = whole_state(tried), draws()
    tried.rehearse(images(0), 0)
    assert same(whole_state(tried), before)
    assert draws() == drawn
    for learner in tried.task.learners:
        assert not learner.optimizer.state
        assert all(each.grad is None for each in learner.module.parameters())
    for step in range(5):
        for each in (tried, plain):
            assert each.step([images(step)] * each.run.accumulate, step).taken
    assert same(whole_state(tried), whole_state(plain))


@pytest.mark.parametrize(
    ("changes", "step", "later"),
    [
        ({"discriminator": "none"}, 0, None),
        ({"discriminator_start": 0, "discriminator_head_start": 0}, 0, None),
        ({"discriminator_start": 10, "discriminator_head_start": 5}, 0, 15),
        ({"discriminator_start": 10, "discriminator_head_start": 5}, 15, None),
        ({"discriminator_start": 10, "adversarial_weight": 0.0}, 0, 10),
        ({"discriminator_start": 10, "r1_weight": 1.0, "discriminator_head_start": 0}, 0, 16),
        # A run that ends before the verdict counts, and one that ends before the discriminator.
        ({"discriminator_start": 10, "discriminator_head_start": 50}, 0, 29),
        ({"discriminator_start": 30}, 0, None),
    ],
)
def test_it_tries_the_step_that_needs_most(
    changes: dict[str, Any], step: int, later: int | None
) -> None:
    task = made({"discriminator": "patchgan", "steps": 30}, changes).task
    assert task.fullest(step) == later


def test_a_run_that_lacks_memory_for_its_discriminator_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: PatchGAN, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layers(images)

    monkeypatch.setattr(PatchGAN, "forward", forward)
    reporter = Silent()
    with pytest.raises(torch.OutOfMemoryError):
        tiny_run(tmp_path / "run", LATE, {"log_every": 1}, reporter=reporter)
    assert not reporter.rows


def test_a_validation_that_lacks_memory_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = {"checkpoint_every": 100, "validate_every": 4, "steps": 8}
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "evaluate", evaluate)
        with pytest.raises(torch.OutOfMemoryError):
            tiny_run(tmp_path / "run", settings)
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]


# `genkit train` that lacks memory in one process: for its held-out images, or for pictures.
DRIVER = """
import sys, torch
from genkit.evaluation import metrics
from genkit.training import tokenizer
from genkit_cli.main import main

def lack(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")

torch.set_num_threads(1)
where = sys.argv.pop(1)
if where == "images":
    metrics._PSNR.values = lack
elif where == "pictures":
    tokenizer.code_histogram = lack
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "lacks"), [("images", 1), ("pictures", 0)])
def test_a_validation_that_lacks_memory_in_one_process_loses_no_step(
    where: str, lacks: int, tmp_path: Path
) -> None:
    settings = {**TINY, "checkpoint_every": 100, "validate_every": 4}
    command = ["train", *flags(settings), "--processes", "2", "--out", "run"]
    # Accelerate warns where it sets the number of threads itself.
    environment = {**os.environ, **meeting(2), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, where if rank == lacks else "nowhere", *command],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for each in started:
        _, error = each.communicate(timeout=240)
        assert each.returncode == 1
        failed = f"Error: process {lacks} of 2 failed: OutOfMemoryError: CUDA out of memory; try a "
        assert error.startswith(failed)
        assert error.count("\n") == 1
    saved = [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-00000004"]


def test_pictures_take_no_more_images_at_once_than_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = made({"batch_size": 3, "ema": 0.0, "validation_images": 4})
    task: Any = trainer.task
    sizes: list[int] = []
    task.final.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    grid = task.validate(0).draw()["samples"]
    assert max(sizes) == 3
    assert sum(sizes) == 4 + len(task.shown)
    task.run = tiny({"batch_size": 16, "validation_images": 4})
    # In one batch a latent may round to another code.
    difference = np.abs(grid.astype(float) - task.validate(0).draw()["samples"])
    assert difference.mean() < 1
