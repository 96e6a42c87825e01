"""Every encoder with every quantizer and every decoder, for one to three levels."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run
from torch import Tensor, nn

import genkit
from genkit import Component, Level, NoOptions, Quantized
from genkit.errors import OptionError
from genkit.models import TokenizerOptions
from genkit.plugin.registry import registry
from genkit.settings import resolve
from genkit.tokenizer import Tokenizer

# Small values for options with large defaults; options that a component lacks are skipped.
SMALL: dict[str, Any] = {
    "model": "test_convnext",
    "width": [8, 16],
    "base_channels": 8,
    "latent_channels": 8,
    "codebook_size": 16,
    "bits": 4,
    "blocks": 1,
}
# Components that do not work with these defaults, and the error.
INCOMPATIBLE = {("quantizer", "fsq"): "8 bins in each of 64 channels are too many codes"}


def small(kind: str, name: str, **options: Any) -> dict[str, Any]:
    config = registry().component(kind, name).config
    known = {field.name for field in dataclasses.fields(config)}
    return {"name": name, **{k: v for k, v in {**SMALL, **options}.items() if k in known}}


def tokenizer(encoder: str, quantizer: str, decoder: str, levels: int) -> Tokenizer:
    settings = {
        "encoder": small("encoder", encoder, levels=levels),
        "quantizer": small("quantizer", quantizer),
        "decoder": small("decoder", decoder),
        "fusion": "hierarchical",
    }
    # Eight channels of three values each give enough codes.
    if quantizer == "fsq":
        settings["quantizer"]["bins"] = 3
    torch.manual_seed(0)
    return Tokenizer(resolve(TokenizerOptions, settings))


NAMES = {kind: registry().names(kind) for kind in ("encoder", "quantizer", "decoder")}
NAMES["decoder"].remove("no-decoder")  # It refuses to decode.
# Encoder and decoder share the levels, so every pair is tried. A quantizer sees only latents, so it
# needs only one encoder and one decoder.
TRIPLES = [
    *itertools.product(NAMES["encoder"], ["vq"], NAMES["decoder"], (1, 2, 3)),
    *(("aren", quantizer, "mirror", 2) for quantizer in NAMES["quantizer"] if quantizer != "vq"),
]


def test_every_component_is_in_a_triple() -> None:
    for place, kind in enumerate(NAMES):
        assert {triple[place] for triple in TRIPLES} == set(NAMES[kind])
    assert [len(names) >= 3 for names in NAMES.values()] == [True] * 3


@pytest.mark.parametrize(("encoder", "quantizer", "decoder", "levels"), TRIPLES)
def test_a_step_of_training_saved_and_loaded(
    encoder: str, quantizer: str, decoder: str, levels: int, tmp_path: Path
) -> None:
    made = tokenizer(encoder, quantizer, decoder, levels)
    assert len(made.levels) == levels
    before = {name: value.clone() for name, value in made.state_dict().items()}
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    sgd = torch.optim.SGD(made.parameters(), 0.01)
    out = made.train()(images)
    (out.loss + (out.images - images).square().mean()).backward()
    sgd.step()
    assert out.images.shape == images.shape
    moved = {
        name for name, value in made.state_dict().items() if not torch.equal(value, before[name])
    }
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("decoder.") for name in moved)
    genkit.save(made, tmp_path / "model.safetensors")
    made.eval()
    again = genkit.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        expected, found = made(images), again(images)
    indices = again.encode(images)
    for one, other, third in zip(expected.indices, found.indices, indices, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    assert torch.equal(expected.images, found.images)
    assert torch.allclose(again.decode(indices), expected.images, atol=1e-4)


@pytest.mark.parametrize("quantizer", NAMES["quantizer"])
@pytest.mark.parametrize("encoder", NAMES["encoder"])
def test_defaults_work_together_or_say_why_not(encoder: str, quantizer: str) -> None:
    """Decided before any training: the tokenizer is built, or one sentence says why not."""
    model = {"model": "test_convnext"} if encoder == "timm" else {}
    options = resolve(
        TokenizerOptions,
        {
            "encoder": {"name": encoder, **model},
            "quantizer": quantizer,
            "decoder": "mirror",
            "fusion": "hierarchical",
        },
    )
    if message := INCOMPATIBLE.get(("quantizer", quantizer)):
        with pytest.raises(OptionError, match=message):
            Tokenizer(options)
    else:
        Tokenizer(options)


class NarrowEncoder(nn.Module):
    """Declares eight channels but returns four."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.levels = [Level(0, 8, 4)]
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images)]


class HalfDecoder(nn.Module):
    """Returns images of half the size."""

    def __init__(self, options: Any, levels: list[Level], channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(levels[0].channels, 12, 1)

    def forward(self, latents: list[Tensor]) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(latents[0]), 2)


class DeepDiscriminator(nn.Module):
    """Downsamples more often than small images allow."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(3, 3, 4, 2) for _ in range(6)])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class BrokenFusion(nn.Module):
    """Adds tensors whose shapes do not match."""

    def __init__(self, options: Any, level: Level, coarser: Level) -> None:
        super().__init__()

    def forward(self, latents: Tensor, coarser: Tensor) -> Tensor:
        return latents + coarser


class HungryPerceptual(nn.Module):
    """Uses a kernel larger than the image."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 64)

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        return (self.conv(reconstructions) - self.conv(images)).square().mean()


class Misspelt(nn.Module):
    """Has an error in its forward pass."""

    levels = (Level(0, 8, 4),)

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return images.nope()


class Unknown(Misspelt):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return {}["nope"]


class Rounding(nn.Module):
    """Rounds to whole numbers from 0 to 3."""

    codebook_size = 4
    change: Any

    def __init__(self, options: Any, level: Level) -> None:
        super().__init__()

    def forward(self, latents: Tensor) -> Any:
        codes = latents.mean(1, keepdim=True).round().clamp(0, 3)
        through = latents + (codes.expand_as(latents) - latents).detach()
        out = Quantized(through, codes[:, 0].long(), latents.new_zeros(()))
        return type(self).change(out)

    def decode(self, indices: Tensor) -> Tensor:
        return indices[:, None].float().expand(-1, 8, -1, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tuple, r"must return genkit.Quantized.latents, indices, loss., not tuple"),
        (
            lambda out: out._replace(indices=out.indices.int()),
            "indices must be int64, not torch.int32",
        ),
        (
            lambda out: out._replace(indices=out.indices.flatten(1)),
            r"the indices must have shape \[1, 4, 4\], not \[1, 16\]",
        ),
        (lambda out: out._replace(indices=out.indices + 4), "between 0 and codebook_size - 1 = 3"),
        (
            lambda out: out._replace(indices=out.indices + 1),
            "indices must count codes from 0, not from 1",
        ),
        (lambda out: out._replace(loss=0.5), "the loss must be one tensor, not float"),
        (
            lambda out: out._replace(loss=torch.zeros(3)),
            r"the loss must have shape \[\], not \[3\]",
        ),
        (lambda out: out._replace(loss=out.loss * torch.nan), "the loss must be finite"),
        (lambda out: out._replace(latents=out.latents[:, :4]), "the quantized latents must have"),
    ],
)
def test_a_quantizers_result_is_checked_before_training(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rounding, "change", change, raising=False)
    entry = Component("quantizer", "rounding", f"{__name__}:Rounding", NoOptions)
    monkeypatch.setitem(registry()._components, ("quantizer", "rounding"), entry)
    with pytest.raises(OptionError, match=message) as caught:
        tiny_run(tmp_path / "run", {"quantizer": "rounding"})
    assert str(caught.value).startswith("the quantizer 'rounding' cannot be trained: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "component", "message"),
    [
        ("perceptual", HungryPerceptual, "Kernel size can't be greater"),
        ("encoder", NarrowEncoder, r"its latents are \[\[1, 4, 8, 8\]\] where they should be"),
        ("decoder", HalfDecoder, r"its images are \[\[1, 3, 16, 16\]\] where they should be"),
        ("discriminator", DeepDiscriminator, "RuntimeError: .* Kernel size can't be greater"),
        ("discriminator", Misspelt, r"no attribute 'nope' \(.*test_pairs.py, line \d+\)$"),
        ("encoder", Misspelt, r": AttributeError: .*'nope' \(.*test_pairs.py, line \d+\)$"),
        ("perceptual", Unknown, r": KeyError: 'nope' \(.*test_pairs.py, line \d+\)$"),
    ],
)
def test_mismatches_are_reported_before_anything_is_written(
    kind: str, component: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = component.__name__.lower()
    entry = Component(kind, name, f"{__name__}:{component.__name__}", NoOptions)
    monkeypatch.setitem(registry()._components, (kind, name), entry)
    with pytest.raises(OptionError, match=message) as caught:
        tiny_run(tmp_path / "run", {kind: name})
    also = " and the fusion 'hierarchical' do not" if kind == "quantizer" else " does not"
    assert str(caught.value).startswith(f"the {kind} '{name}'{also} work with the other")
    assert not (tmp_path / "run").exists()


def test_the_fusion_is_named_if_it_may_be_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Component("fusion", "broken", f"{__name__}:BrokenFusion", NoOptions)
    monkeypatch.setitem(registry()._components, ("fusion", "broken"), entry)
    with pytest.raises(OptionError, match="the quantizer 'vq' and the fusion 'broken' do not work"):
        tiny_run(tmp_path / "run", {"fusion": "broken"})
