"""Use from Python: training, registering a component, and how it is saved."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, invoke
from torch import Tensor, nn

import genkit
from genkit import Component, Level, NoOptions, Quantized, option
from genkit.errors import MissingComponent, OptionError, PluginError
from genkit.plugin.registry import registry


class Sign(nn.Module):
    """A quantizer with two codes: each latent becomes -1 or 1 by the sign of its mean."""

    codebook_size = 2

    def __init__(self, options: Any, level: Level) -> None:
        super().__init__()
        self.channels = level.channels

    def forward(self, latents: Tensor) -> Quantized:
        indices = (latents.mean(1) > 0).long()
        quantized = self.decode(indices)
        return Quantized(latents + (quantized - latents).detach(), indices, latents.square().mean())

    def decode(self, indices: Tensor) -> Tensor:
        return (indices * 2.0 - 1)[:, None].expand(-1, self.channels, -1, -1)


@dataclass(frozen=True)
class Mutable:
    scale: int = option(3, "a number")


@pytest.fixture
def signs() -> Any:
    genkit.register(Component("quantizer", "sign", Sign, NoOptions, "signs"))
    yield
    registry()._components.pop(("quantizer", "sign"), None)


def test_train_returns_the_tokenizer_and_calls_back(tmp_path: Path) -> None:
    rows: list[Any] = []
    tokenizer = genkit.train(TINY, out=tmp_path / "run", data="faces", on_row=rows.append)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert not tokenizer.training
    indices = tokenizer.encode(torch.zeros(1, 3, 32, 32))
    assert torch.equal(
        genkit.load(tmp_path / "run").encode(torch.zeros(1, 3, 32, 32))[0], indices[0]
    )
    rows.clear()
    genkit.train({"steps": 10}, out=tmp_path / "run", on_row=rows.append, resume=True)
    assert [row["step"] for row in rows] == [10]
    with pytest.raises(OptionError, match="There is no option 'stepz'"):
        genkit.train({"stepz": 10}, out=tmp_path / "other")
    # Another precision in the same process.
    genkit.train({**TINY, "mixed_precision": "bf16"}, out=tmp_path / "bf16")


@pytest.mark.usefixtures("signs")
def test_a_registered_quantizer_trains_and_is_named_if_missing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {key: value for key, value in TINY.items() if key != "quantizer"}
    tokenizer = genkit.train({**settings, "quantizer": "sign"}, out=out)
    assert isinstance(tokenizer.quantizers[0], Sign)
    assert genkit.inspect(out)["components"]["quantizer"]["name"] == "sign"
    code, text = invoke("train", "--quantizer", "sign", "--processes", "2", "--out", tmp_path / "x")
    assert code == 2
    assert "registered from Python: install it as a plugin" in text
    registry()._components.pop(("quantizer", "sign"))
    with pytest.raises(MissingComponent, match=r"register it first with genkit.register"):
        genkit.load(out)


def test_registering_replaces_only_registered_components() -> None:
    with pytest.raises(PluginError, match=r"genkit-vq .* has a quantizer 'vq' already"):
        genkit.register(Component("quantizer", "vq", Sign))
    for scale in (1, 2):
        genkit.register(Component("quantizer", "twice", Sign, Mutable, str(scale)))
    assert registry().component("quantizer", "twice").help == "2"
    registry()._components.pop(("quantizer", "twice"))


def test_the_package_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "genkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"genkit, version {genkit.__version__}\n"
