"""Every installed component passes the contract tests for authors.

Components that break the contract fail them.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import distribution
from torch import nn

from genkit import Component, NoOptions, Quantized, testing
from genkit.plugin.registry import registry

QUANTIZER_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "vq": [
        {"codebook_size": 16},
        {"codebook_size": 16, "update": "gradient"},
        {"codebook_size": 16, "distance": "cosine", "kmeans_start": False},
        {"codebook_size": 16, "distance": "cosine", "update": "gradient", "codebook_dim": 4},
        {"codebook_size": 16, "distance": "product"},
    ],
    "categorical": [{"codebook_size": 16}, {"codebook_size": 16, "straight_through": False}],
    "fsq": [{"channels": 4, "bins": 5}],
    "residual-vq": [
        {"codebook_size": 16},
        {"codebook_size": 16, "shared": True, "gradient": "straight-through"},
        {"codebook_size": 16, "codebooks": 1, "codebook_dim": 4, "kmeans_start": False},
    ],
    "grouped-residual-vq": [{"codebook_size": 16}],
    "multi-head-vq": [
        {"codebook_size": 16},
        {"codebook_size": 16, "update": "gradient", "orthogonal_weight": 1.0},
        {"codebook_size": 16, "codebooks": 1},
    ],
    "simvq": [{"codebook_size": 16}, {"codebook_size": 16, "codebook_dim": 4}],
    "residual-simvq": [{"codebook_size": 16}],
    "lfq": [{"bits": 4}, {"bits": 5, "codebooks": 2}, {"bits": 1}],
    "bsq": [{"bits": 4}, {"bits": 5, "codebooks": 2}],
    "zoo-fsq": [
        {},
        {"codebooks": 2, "symmetric": False},
        {"values": [4, 4], "rotate": True, "noise": 0.5},
    ],
    "residual-fsq": [{}, {"codebooks": 1}],
    "latent": [{}, {"codebooks": 2}, {"learn": False}],
}
CASES = [
    (name, options)
    for name in registry().names("quantizer")
    for options in QUANTIZER_OPTIONS.get(name, [{}])
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_quantizers(name: str, options: dict[str, Any]) -> None:
    testing.check_quantizer(name, processes=1, **options)


# Two processes take seconds to start. By default only the example's quantizer and one that fails
# start them.
@pytest.mark.slow
@pytest.mark.parametrize("name", registry().names("quantizer"))
def test_quantizers_in_two_processes(name: str) -> None:
    testing.check_quantizer(name, **QUANTIZER_OPTIONS.get(name, [{}])[0])


@pytest.mark.parametrize("attention", registry().names("attention"))
def test_attentions(attention: str) -> None:
    testing.check_attention(attention)


@pytest.mark.parametrize("encoder", registry().names("encoder"))
def test_encoders(encoder: str) -> None:
    config = registry().component("encoder", encoder).config
    takes_attention = "attention" in {field.name for field in dataclasses.fields(config)}
    for attention in registry().names("attention") if takes_attention else [None]:
        testing.check_encoder(encoder, **({"attention": attention} if attention else {}))


# A tokenizer whose file holds no decoder cannot decode.
@pytest.mark.parametrize("decoder", sorted({*registry().names("decoder")} - {"no-decoder"}))
def test_decoders(decoder: str) -> None:
    testing.check_decoder(decoder)
    testing.check_decoder(decoder, strides=(8,))


@pytest.mark.parametrize("loss", registry().names("loss"))
def test_losses(loss: str) -> None:
    testing.check_loss(loss)
    testing.check_loss(loss, 5)


@pytest.mark.parametrize(
    # timm's needs weights and is checked in test_pretrained_losses.py.
    "discriminator",
    [name for name in registry().names("discriminator") if name != "timm"],
)
def test_discriminators(discriminator: str) -> None:
    testing.check_discriminator(discriminator)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_patchgan_with_other_norms(norm: str) -> None:
    testing.check_discriminator("patchgan", norm=norm, norm_logits=True)


@pytest.mark.parametrize("fusion", registry().names("fusion"))
def test_fusions(fusion: str) -> None:
    testing.check_fusion(fusion)


def test_faces() -> None:
    testing.check_dataset("faces")


def test_folder(photographs: Any) -> None:
    testing.check_dataset("folder", location=str(photographs))


class Good(nn.Module):
    """Rounds to the nearest integer from 0 to 3."""

    codebook_size = 4

    def __init__(self, options: Any, level: Any) -> None:
        super().__init__()

    def forward(self, latents: torch.Tensor) -> Any:
        codes = latents.mean(1, keepdim=True).round().clamp(0, 3)
        through = latents + (codes.expand_as(latents) - latents).detach()
        return Quantized(through, codes[:, 0].long(), latents.new_zeros(()))

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        return indices[:, None].float().expand(-1, 8, -1, -1)


class Tuple(Good):
    def forward(self, latents: torch.Tensor) -> Any:
        return tuple(super().forward(latents))


class NoGradient(Good):
    def forward(self, latents: torch.Tensor) -> Any:
        return (
            super()
            .forward(latents)
            ._replace(latents=super().forward(latents).latents.detach().requires_grad_())
        )


class IntIndices(Good):
    def forward(self, latents: torch.Tensor) -> Any:
        out = super().forward(latents)
        return out._replace(indices=out.indices.int())


class TooManyIndices(Good):
    def forward(self, latents: torch.Tensor) -> Any:
        out = super().forward(latents)
        return out._replace(indices=out.indices + 4)


class LossPerImage(Good):
    def forward(self, latents: torch.Tensor) -> Any:
        return super().forward(latents)._replace(loss=torch.zeros(3))


class OtherDecode(Good):
    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        return super().decode(indices) + 0.5


class Forgetful(Good):
    """Keeps its state outside the state dict, so it is not saved."""

    def __init__(self, options: Any, level: Any) -> None:
        super().__init__(options, level)
        self.shift = torch.rand(()) * 2

    def forward(self, latents: torch.Tensor) -> Any:
        return super().forward(latents + self.shift)


BROKEN = [
    (Tuple, "must return genkit.Quantized"),
    (NoGradient, "a gradient must reach the latents"),
    (IntIndices, "indices must be int64"),
    (TooManyIndices, "indices must lie between 0 and"),
    (LossPerImage, "the loss must have shape"),
    (OtherDecode, "decode.indices. must equal"),
    (Forgetful, "shift is a tensor that is neither saved nor moved to a GPU"),
]


@pytest.fixture
def installed() -> Any:
    """Installs this file's classes as quantizers for one test."""
    known = registry()._components
    before = dict(known)
    for quantizer in (Good, *(broken for broken, _ in BROKEN)):
        name = quantizer.__name__.lower()
        component = Component("quantizer", name, f"{__name__}:{quantizer.__name__}", NoOptions)
        known["quantizer", name] = component
    yield
    known.clear()
    known.update(before)


@pytest.mark.usefixtures("installed")
def test_a_good_quantizer_passes() -> None:
    testing.check_quantizer("good", processes=1)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("quantizer", "message"), BROKEN)
def test_a_broken_quantizer_gets_the_contracts_message(quantizer: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_quantizer(quantizer.__name__.lower(), processes=1)


ALONE = """
import torch
from torch import nn
from genkit import Component, Quantized, hookimpl

class Alone(nn.Module):
    codebook_size = 4
    def __init__(self, options, level):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, latents):
        if self.training:
            self.seen += latents.detach().sum()
        codes = latents.mean(1, keepdim=True).round().clamp(0, 3)
        through = latents + (codes.expand_as(latents) - latents).detach()
        return Quantized(through, codes[:, 0].long(), latents.new_zeros(()))
    def decode(self, indices):
        return indices[:, None].float().expand(-1, 8, -1, -1)

@hookimpl
def genkit_components():
    return [Component("quantizer", "alone", "genkit_alone:Alone")]
"""


def test_a_quantizer_that_ignores_other_processes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two real processes, which find the plugin installed."""
    (tmp_path / "genkit_alone.py").write_text(ALONE)
    distribution(tmp_path, "genkit-alone", "1", {"alone": "genkit_alone"})
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cache_clear()
    try:
        with pytest.raises(AssertionError, match="'seen' must stay the same on all processes"):
            testing.check_quantizer("alone")
    finally:
        registry.cache_clear()


SCRIPT = """
from genkit.testing import check_quantizer
check_quantizer("vq", channels=8)
print("ok")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stdin", [False, True])
def test_the_check_runs_in_a_script_of_any_form(stdin: bool, tmp_path: Path) -> None:
    """In a script without a `__main__` guard, and in one that is not a file, like a notebook."""
    (tmp_path / "check.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-" if stdin else "check.py"],
        input=SCRIPT if stdin else "",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # Gloo may print a line about its connections.
    said = [line for line in done.stdout.splitlines() if "[Gloo]" not in line]
    assert (done.returncode, said) == (0, ["ok"]), done.stderr
