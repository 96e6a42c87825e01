"""torch.compile in training: the same model, names and files, and runs resumed without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import InterruptAt, tiny_run, weights
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import genkit
from genkit.errors import OptionError
from genkit.run.options import layered, resolve_run
from genkit.training import compiling, nets
from genkit.training.compiling import check_compiler

# A discriminator with every way of using it: frozen, with two gradients, and with second ones.
FULL: dict[str, Any] = {
    "discriminator": {"name": "patchgan", "width": [8, 8], "strides": [2, 2, 1]},
    "discriminator_head_start": 1,
    "discriminator_ramp": 0,
    "adversarial_adaptive": True,
    "r1_weight": 0.1,
    "r1_every": 3,
    "log_every": 1,
    "validate_every": 4,
    "checkpoint_every": 2,
    "steps": 4,
}

AGAIN: dict[str, Any] = {"recompute": True, "encoder": {"norm": "batch"}}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts graphs, which a backend without a compiler runs with their own gradients."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    return counter


def names(out: Path) -> set[str]:
    """The names of all tensors of a run's files."""
    files = [out / "model.safetensors", *out.glob("checkpoints/*/*.safetensors")]
    return {name for file in files for name in load_file(file)}


def check_close(out: Path, expected: Path, atol: float = 1e-3) -> None:
    """Two runs have equal weights up to rounding."""
    for name, value in weights(out).items():
        torch.testing.assert_close(value, weights(expected)[name], rtol=1e-3, atol=atol)


def test_a_run_resumes_with_and_without(
    graphs: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"steps": 4, "validate_every": 4, "encoder": {"levels": 1}}
    tiny_run(tmp_path / "plain", settings)
    assert not graphs.frame_count
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    out = tmp_path / "run"
    assert not tiny_run(out, settings, {"compile": True}, reporter=InterruptAt(2)).done
    resumed = tiny_run(out, settings, {"compile": False}, resume=True)
    assert resumed.facts["changed"] == ["--compile is False, was True"]
    assert names(out) == names(tmp_path / "plain")
    assert not any("orig" in name or "compiled" in name for name in names(out))
    check_close(out, tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, AGAIN, {"mixed_precision": "bf16"}])
def test_a_compiled_run_against_a_discriminator(
    more: dict[str, Any], graphs: CompileCounterWithBackend, tmp_path: Path
) -> None:
    tiny_run(tmp_path / "plain", FULL, more)
    tiny_run(tmp_path / "run", FULL, more, {"compile": True})
    # The probe, encoder, decoder and fusion, and the discriminator trained and frozen.
    assert 6 <= graphs.frame_count <= 9
    assert names(tmp_path / "run") == names(tmp_path / "plain")
    if not more.get("mixed_precision"):
        # Against a discriminator rounding grows from step to step, on some processors to 1.3e-3.
        check_close(tmp_path / "run", tmp_path / "plain", atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": {"norm": "batch", "attention": "pixel"}},
        {"encoder": {"name": "vqgan", "width": [8], "latent_channels": 8}, "decoder": "vqgan"},
        {"encoder": {"name": "timm", "model": "test_resnet"}, "decoder": "residual"},
        {"discriminator": {"name": "stylegan", "width": [4, 4]}, "discriminator_head_start": 0},
    ],
)
def test_every_net_compiles(
    settings: dict[str, Any], graphs: CompileCounterWithBackend, tmp_path: Path
) -> None:
    tiny_run(tmp_path / "plain", {"steps": 2}, settings)
    tiny_run(tmp_path / "run", {"steps": 2, "compile": True}, settings)
    assert graphs.frame_count >= 3
    check_close(tmp_path / "run", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoregressive", "masked"])
@pytest.mark.parametrize("again", [False, True])
def test_a_compiled_prior(
    name: str, again: bool, graphs: CompileCounterWithBackend, trained: Path, tmp_path: Path
) -> None:
    settings = {
        "prior": {"name": name, "width": 32, "heads": 2, "depth": 2},
        **{"steps": 4, "batch_size": 8, "validation_images": 8, "shown": 2, "validate_every": 2},
        **{"recompute": again, "data": {"heldout": 8}, "ema": 0.0},
    }
    genkit.train_prior(trained, settings, out=tmp_path / "plain")
    assert not graphs.frame_count
    genkit.train_prior(trained, {**settings, "compile": True}, out=tmp_path / "run")
    assert graphs.frame_count >= 2
    assert names(tmp_path / "run") == names(tmp_path / "plain")
    check_close(tmp_path / "run", tmp_path / "plain")


@pytest.mark.slow
def test_the_real_compiler(tmp_path: Path) -> None:
    settings = {"steps": 2, "encoder": {"levels": 1, "norm": "batch"}}
    tiny_run(tmp_path / "plain", settings)
    tiny_run(tmp_path / "run", settings, {"compile": True})
    assert names(tmp_path / "run") == names(tmp_path / "plain")
    check_close(tmp_path / "run", tmp_path / "plain")


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told(tmp_path: Path) -> None:
    script = (
        "import torch\nfrom genkit.training.compiling import check_compiler\n"
        "check_compiler(torch.device('cpu'))"
    )
    environment = {
        **os.environ,
        **{"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert "OptionError: --compile does not work on this machine" in done.stderr
    assert "torch.compile needs a C++ compiler, such as g++" in done.stderr


def test_both_options_need_other_norms_on_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = resolve_run(layered(None, {"compile": True, "recompute": True}))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setattr(nets, "processes", lambda: 2)
    nets.prepare_nets(run, [nn.Sequential(nn.GroupNorm(2, 4))], torch.device("cpu"))
    with pytest.raises(OptionError, match=r"statistics twice .* choose another norm"):
        nets.prepare_nets(run, [nn.Sequential(nn.BatchNorm2d(4))], torch.device("cpu"))


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such program: cc1plus")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(OptionError, match=r"no such program: cc1plus.*leave --compile out"):
        check_compiler(torch.device("cpu"))
