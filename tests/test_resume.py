"""Resuming: interrupted runs end like uninterrupted ones; torn and foreign checkpoints."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    MOBILENET,
    TINY,
    WEIGHTS,
    InterruptAt,
    comparable,
    need,
    rows,
    same,
    tiny_run,
    weights,
)
from PIL import Image

from genkit.errors import OptionError, TrainingError
from genkit.run.options import layered, resolve_run
from genkit.run.state import load_state, save_state
from genkit.settings import choose
from genkit.training.modules import load_module_state, load_optimizer_state, module_state

RESUMED: list[dict[str, Any]] = [
    {},
    {
        "ema": 0.9,
        "accumulate": 2,
        "discriminator": "patchgan",
        "discriminator_start": 2,
        "discriminator_head_start": 1,
        "mixed_precision": "bf16",
    },
    {"quantizer": {"update": "gradient", "revive": 1.0}, "optimizer": "adamw", "workers": 1},
    {
        "quantizer": {"name": "residual-vq", "codebook_size": 16},
        "perceptual": {"name": "timm", "weights": MOBILENET},
        "discriminator": "patchgan",
        "discriminator_head_start": 2,
        "lecam_weight": 0.1,
        "r1_weight": 0.1,
        "r1_every": 2,
    },
]


# At the step of a checkpoint and between two.
@pytest.mark.parametrize(
    ("settings", "step"),
    [
        *((settings, 3) for settings in RESUMED),
        (RESUMED[0], 4),
        *(pytest.param(settings, 4, marks=pytest.mark.slow) for settings in RESUMED[1:]),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    settings: dict[str, Any], step: int, tmp_path: Path
) -> None:
    from accelerate.state import AcceleratorState

    from genkit.training.loop import train
    from genkit.training.tokenizer import TokenizerTask

    if "perceptual" in settings:
        need(WEIGHTS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_run(whole, settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    reporter = InterruptAt(step)
    run = resolve_run(layered(None, TINY, settings))
    assert train(TokenizerTask, run, parts, reporter) == signal.SIGINT
    assert reporter.done is False
    assert rows(parts)[-1]["step"] == step // 2 * 2
    assert tiny_run(parts, settings, resume=True).done
    assert same(weights(parts), weights(whole))
    assert comparable(parts) == comparable(whole)
    assert (parts / "samples" / "step-000008.png").read_bytes() == (
        whole / "samples" / "step-000008.png"
    ).read_bytes()


def test_the_checkpoint_before_a_torn_one_is_used(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000008" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    step, state = load_state(tmp_path / "run" / "checkpoints")
    assert step == 4
    assert "step-00000008" in state["passed_over"][0]
    resumed = tiny_run(tmp_path / "run", {"steps": 10}, resume=True)
    assert resumed.facts["passed_over"] == state["passed_over"]
    for file in (tmp_path / "run" / "checkpoints").rglob("state.json"):
        file.write_text("{")
    with pytest.raises(TrainingError, match=r"no usable checkpoint.*step-000000.*step-000000"):
        load_state(tmp_path / "run" / "checkpoints")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("width = [\n    8,", "width = [\n    6,", 1))
    assert config.read_text() != text
    with pytest.raises(TrainingError, match=r"does not fit the model: .* tensors differ, first"):
        tiny_run(tmp_path / "run", {"encoder": {"width": [6]}, "steps": 10}, resume=True)


def test_changes_are_reported_and_another_run_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(OptionError, match=r"--encoder\.width, --lr would make it another run"):
        tiny_run(tmp_path / "run", {"lr": 1e-5, "encoder": {"width": [6]}}, resume=True)
    resumed = tiny_run(tmp_path / "run", {"steps": 10, "keep": 1}, resume=True)
    assert resumed.facts["changed"] == ["--steps is 10, was 8", "--keep is 1, was 2"]
    state = tmp_path / "run" / "checkpoints" / "step-00000010"
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000008"
    for name in ("tensors.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        torn = bytearray(whole)
        torn[-20] ^= 1
        (newest / name).write_bytes(torn)
        step, state = load_state(newest.parent)
        assert step == 4
        assert f"{name} is damaged" in state["passed_over"][0]
        (newest / name).write_bytes(whole)
    assert load_state(newest.parent)[0] == 8


def test_a_run_killed_before_its_first_checkpoint_restarts(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    for state in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(state)
    assert tiny_run(tmp_path / "run", resume=True).done
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(TrainingError, match="no usable checkpoint"):
        tiny_run(tmp_path / "run", resume=True)


def test_states_keep_their_structure_and_the_newest_stay(tmp_path: Path) -> None:
    state = {"a": {1: [torch.arange(3), (2.5, "x", None)]}, "b": True}
    for step in (1, 2, 3):
        save_state(tmp_path, step, state, keep=2)
    step, loaded = load_state(tmp_path)
    assert step == 3
    assert torch.equal(loaded["a"][1][0], torch.arange(3))
    assert loaded["a"][1][1] == (2.5, "x", None)
    assert loaded["b"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_run_without_a_checkpoint_can_be_restarted(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert tiny_run(tmp_path / "run").done
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 4, 6, 8]


def test_a_resumed_run_continues_past_its_end(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(TrainingError, match="at step 8 already: give a larger --steps"):
        tiny_run(tmp_path / "run", {"steps": 6}, resume=True)


def test_a_resumed_run_needs_the_same_images(photographs: Path, tmp_path: Path) -> None:
    data = {"data": str(photographs)}
    tiny_run(tmp_path / "run", data)
    Image.new("RGB", (40, 40)).save(photographs / "one-more.png")
    with pytest.raises(TrainingError, match="training data have changed"):
        tiny_run(tmp_path / "run", data, {"steps": 10}, resume=True)


def after(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def small(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8)),
        *(torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)),
    )
    return module, choose("optimizer", name).build(module, 1e-3, torch.float32)


def check_resumes(name: str, folder: Path) -> None:
    """A loaded state gives the same bits as the optimizer that saved it."""
    whole, its = small(name)
    after(whole, its, range(2))
    save_state(folder, 2, {"module": module_state(whole), "optimizer": its.state_dict()}, keep=1)
    _, state = load_state(folder)
    resumed, other = small(name)
    load_module_state(resumed, state["module"])
    load_optimizer_state(other, state["optimizer"])
    after(whole, its, range(2, 4))
    after(resumed, other, range(2, 4))
    assert same(module_state(whole), module_state(resumed)), name


def test_an_optimizer_with_a_dtype_in_its_state_resumes(tmp_path: Path) -> None:
    check_resumes("adafactorbv", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_optimizer_resumes(tmp_path: Path) -> None:
    from timm.optim import list_optimizers

    usable = []
    for name in (*list_optimizers(), "muon", "adam", "adamw"):
        try:
            small(name)
        except OptionError:
            continue
        check_resumes(name, tmp_path / name)
        usable.append(name)
    assert {"kron", "adan", "lamb", "sgd"} <= {*usable}
