"""Steps with NaN or infinity: skipped without a trace, counted, and kept for a replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import (
    TINY,
    comparable,
    flags,
    genkit_command,
    genkit_here,
    invoke,
    rows,
    same,
    tiny_run,
    weights,
)
from genkit_losses import pixels

from genkit.errors import TrainingError
from genkit.evaluation.metrics import psnr
from genkit.ops import nearest
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.run.state import load_state
from genkit.training import adversary, tokenizer, trainer
from genkit.training.learner import Learner, Snapshot
from genkit.training.modules import copy_all, module_state
from genkit.training.seeds import seed
from genkit.training.tokenizer import TokenizerTask
from genkit.training.trainer import Trainer

FULL: dict[str, Any] = {
    "discriminator": {"name": "patchgan", "norm": "batch"},
    "discriminator_head_start": 0,
    "discriminator_ramp": 4,
    "lecam_weight": 0.1,
    "ema": 0.9,
    "encoder": {"norm": "batch"},
    "clip": 0.5,
}


def tiny(*changes: dict[str, Any]) -> TokenizerRun:
    return resolve_run(layered(None, TINY, *changes))


def made(*changes: dict[str, Any]) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer_of(tiny(*changes), Accelerator(cpu=True))


def trainer_of(run: TokenizerRun, accelerator: Accelerator) -> Trainer:
    seed(run.seed)
    return Trainer(run, accelerator, TokenizerTask(run, accelerator))


def whole_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in trainer.modules.items()
        for key, value in module_state(module).items()
    }


def images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("settings", [{}, FULL, {"quantizer": {"update": "gradient"}}])
def test_a_skipped_step_leaves_no_trace(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a step with a NaN loss, the next step is as if it had not happened."""
    spoiled, whole = made(settings), made(settings)
    for number, each in enumerate((spoiled, whole)):
        for module in each.modules.values():
            module.train()
        for step in range(3):
            assert each.step([images(step)], step).taken
        if number:
            continue
        before = whole_state(spoiled)
        with monkeypatch.context() as patch:
            patch.setattr(pixels.F, "mse_loss", lambda a, b: (a - b).mean() * torch.nan)
            done = spoiled.step([images(3)], 3)
        assert not done.taken
        assert {"loss", "reconstruction", "gradient_norm"} <= set(done.broken)
        assert same(before, whole_state(spoiled))
    for each in (spoiled, whole):
        assert each.step([images(4)], 4).taken
    assert same(whole_state(spoiled), whole_state(whole))


def test_a_replaced_buffer_is_restored() -> None:
    norm = torch.nn.BatchNorm1d(2)
    kept = Snapshot([torch.nn.Sequential(norm)], [])
    kept.take()
    norm.running_mean = torch.ones(2)
    kept.restore()
    assert norm.running_mean.tolist() == [0, 0]
    norm.register_buffer("late", torch.ones(3))
    kept.take()
    norm.late.zero_()
    kept.restore()
    assert norm.late.tolist() == [1, 1, 1]


def test_a_discriminator_skips_steps_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    each = made(FULL)
    each.step([images(0)], 0)
    before = whole_state(each)
    with monkeypatch.context() as patch:
        patch.setattr(
            adversary, "discriminator_loss", lambda kind, real, fake: real.mean() * torch.inf
        )
        done = each.step([images(1)], 1)
    assert done.taken
    assert not done.others_taken
    assert set(done.broken) == {"discriminator", "discriminator_gradient_norm"}
    assert not set(done.broken) & set(done.figures[0])
    after = whole_state(each)
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"tokenizer", "average"}


def made_scaled(scale: float) -> Trainer:
    """A trainer that scales its losses as in fp16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    # Accelerate allows fp16 only on GPUs; torch's scaler also works here.
    accelerator.state._mixed_precision = "fp16"
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer_of(tiny(FULL), accelerator)


def test_a_doubted_step_with_a_loss_scale_is_undone_and_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubted, plain = made_scaled(2.0**8), made_scaled(2.0**8)
    for each in (doubted, plain):
        for module in each.modules.values():
            module.train()
        assert each.step([images(0)], 0).taken
    wrong = []

    def first(latents: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wrong.append(len(latents))
        return torch.zeros(len(latents), dtype=torch.int64), torch.tensor(True)

    with monkeypatch.context() as patch:
        patch.setattr(nearest, "_must_wait", lambda device: True)
        patch.setattr(nearest, "_first", first)
        assert doubted.step([images(1)], 1).taken
    # Both levels of the step, and of its repetition.
    assert len(wrong) == 4
    assert plain.step([images(1)], 1).taken
    assert same(whole_state(doubted), whole_state(plain))
    assert doubted.state()["scaler"] == plain.state()["scaler"]


def test_a_loss_scale_is_lowered_until_steps_are_taken() -> None:
    """Scaled as in fp16, gradients overflow at first; the k-means start happens all the same."""
    scaled = made_scaled(2.0**30)
    accelerator = scaled.accelerator
    skipped = 0
    while not scaled.step([images(0)], 0).taken:
        skipped += 1
        assert skipped < 100
    assert skipped > 3
    for step in range(1, 4):
        assert scaled.step([images(step)], step).taken
    assert all(quantizer.started for quantizer in scaled.learner.module.quantizers)
    state = scaled.state()
    assert state["scaler"]["scale"] == accelerator.scaler.get_scale()
    accelerator.scaler.update(3.0)
    scaled.load(state)
    assert accelerator.scaler.get_scale() == state["scaler"]["scale"]


def test_skipped_steps_are_counted_and_the_run_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = 0

    def sometimes(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return psnr(images, reconstructions) * (torch.nan if calls in (3, 4) else 1)

    monkeypatch.setattr(tokenizer, "psnr", sometimes)
    real = Learner.finish

    def with_psnr(self: Learner, losses: list[torch.Tensor], *doubts: Any) -> Any:
        return real(self, [*losses, torch.tensor(torch.nan if calls in (3, 4) else 0.0)], *doubts)

    monkeypatch.setattr(Learner, "finish", with_psnr)
    tiny_run(tmp_path / "run")
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [0, 2, 0, 0]
    assert "loss" not in rows(tmp_path / "run")[1]
    assert rows(tmp_path / "run")[2]["loss"] > 0


def test_the_step_that_stopped_a_run_can_be_replayed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wild = {"lr": 1e20, "clip": 0, "warmup": 0, "steps": 30, "max_skipped": 3}
    with pytest.raises(TrainingError, match=r"3 steps in a row.*genkit replay"):
        tiny_run(out, FULL, wild)
    step, state = load_state(out / "failure")
    (batch,) = state["batches"]
    assert batch.shape == (1, 4, 32, 32, 3)
    assert batch.dtype == torch.uint8
    again = genkit_here("replay", out)
    assert again.returncode == 0, again.stderr
    assert f"Step {step} fails again. Not finite: loss" in again.stdout
    AcceleratorState._reset_state(reset_partial_state=True)
    code, text = invoke("replay", out, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["failed"]
    assert found["now"] == found["then"]
    assert found["modules"] or found["gradients"]
    assert found["modules"] == [] or found["modules"][0].startswith("tokenizer.encoder.")


@pytest.mark.slow
def test_a_failure_of_two_processes_is_replayed_by_two(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wild = {"lr": 1e20, "clip": 0, "warmup": 0, "steps": 30, "max_skipped": 3}
    settings = [*flags({**TINY, **wild}), "--discriminator", "patchgan"]
    failed = genkit_command("train", *settings, "--processes", "2", "--out", out)
    assert failed.returncode == 1
    assert failed.stderr.count("Error:") == 1
    assert "3 steps in a row were skipped" in failed.stderr
    step, state = load_state(out / "failure")
    (batch,) = state["batches"]
    assert batch.shape == (2, 4, 32, 32, 3)
    assert not torch.equal(*batch)
    again = genkit_command("replay", out, "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["failed"]
    assert found["step"] == step
    assert found["now"] == found["then"]


def test_a_healthy_run_has_nothing_to_replay(trained: Path, tmp_path: Path) -> None:
    code, text = invoke("replay", trained)
    assert code == 1
    assert "keeps no failed step" in text
    assert invoke("replay", tmp_path)[0] == 2


def test_ramp_weight_and_clipping_are_logged(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", FULL, {"log_every": 1, "discriminator_start": 2})
    found = rows(tmp_path / "run")
    assert "adversarial_weight" not in found[1]
    logged = [row["adversarial_weight"] for row in found[2:]]
    assert logged == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    for row in found:
        assert row["clipped"] == (row["gradient_norm"] > 0.5)
    for row in found[2:]:
        assert row["discriminator_clipped"] == (row["discriminator_gradient_norm"] > 0.5)
    tiny_run(tmp_path / "free", {"clip": 0})
    assert rows(tmp_path / "free")[0]["gradient_norm"] > 0
    assert "clipped" not in rows(tmp_path / "free")[0]
    assert weights(tmp_path / "free")


def test_values_of_several_dtypes_are_copied_a_dtype_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = [torch.ones(2), torch.ones(3, dtype=torch.int64), torch.ones(()), torch.tensor(True)]
    targets = [torch.zeros_like(each) for each in values]
    copy, calls = torch._foreach_copy_, []

    def counted(into: list[torch.Tensor], of: list[torch.Tensor]) -> None:
        calls.append({each.dtype for each in into})
        copy(into, of)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    copy_all(targets, values)
    assert all(torch.equal(*pair) for pair in zip(targets, values, strict=True))
    assert calls == [{torch.float32}, {torch.int64}, {torch.bool}]


def test_a_doubted_step_is_undone_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With searches that a GPU may have to take back, training has the same result."""
    tiny_run(tmp_path / "cpu")
    monkeypatch.setattr(nearest, "_must_wait", lambda device: True)
    monkeypatch.setattr(trainer, "_CAREFUL", 0)
    real, take, calls, steps = nearest._first, Trainer._take, [], []

    def wrong(latents: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        indices, doubt = real(latents, codebook)
        calls.append(doubt)
        wrong = len(calls) % 5 == 0
        return (torch.zeros_like(indices), torch.tensor(True)) if wrong else (indices, doubt)

    def counted(self: Trainer, batches: Any, step: int, *doubts: Any) -> Any:
        steps.append(step)
        return take(self, batches, step, *doubts)

    monkeypatch.setattr(nearest, "_first", wrong)
    monkeypatch.setattr(Trainer, "_take", counted)
    tiny_run(tmp_path / "gpu")
    assert len(steps) > len(set(steps)) == 8
    assert same(weights(tmp_path / "cpu"), weights(tmp_path / "gpu"))
    assert comparable(tmp_path / "cpu") == comparable(tmp_path / "gpu")
