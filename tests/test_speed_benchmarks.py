"""The benchmarks of the training step and of time to quality measure what their pages state."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from benchmarks.speed import ours, page, peers, quality, step
from benchmarks.speed.timing import Settings, spread

DRAWN = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws the page's curves"
)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Keep the precision of these runs from leaking into later tests."""
    yield
    ours.forget_precision()


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Folders `train` and `test` of smooth images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        (tmp_path / part).mkdir()
        for number in range(count):
            base = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(base).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(tmp_path / part / f"{number}.png")
    return tmp_path


def test_our_loop_and_the_bare_one_give_the_same_weights() -> None:
    found = step.overhead(step.TINY, 16)
    assert found["largest_difference"] <= 1e-6
    assert found["milliseconds"]["ours"]["rounds"] == 5
    assert 0.5 < found["ratio_of_sums"] < 2


def test_a_step_of_every_model_is_timed_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    conv = torch.nn.Conv2d.forward

    def interleaved(work: dict[str, Any], *bounds: Any) -> dict[str, list[float]]:
        for name, each in work.items():
            dtypes = seen.setdefault(name, set())

            def watched(self: Any, x: Any, dtypes: set[torch.dtype] = dtypes) -> Any:
                made = conv(self, x)
                dtypes.add(made.dtype)
                return made

            with monkeypatch.context() as patch:
                patch.setattr(torch.nn.Conv2d, "forward", watched)
                each()
        return {name: [1.0, 2.0] for name in work}

    monkeypatch.setattr(step, "interleaved", interleaved)
    figures = step.speed(Settings(quick=True), 2, 32)
    assert seen.keys() == figures.keys() == {*step.models(), *peers.peers()}
    for name, dtypes in seen.items():
        assert (torch.bfloat16 in dtypes) == name.endswith("bf16"), name
    same, large = (figures[n] for n in ("genkit, as large as VQ-VAE-2", step.BASELINE))
    assert same["parameters"] == pytest.approx(large["parameters"], rel=0.05)
    assert same["bits_per_pixel"] == large["bits_per_pixel"]


def test_the_page_of_steps_names_missing_packages(tmp_path: Path) -> None:
    one = {**spread([1.0, 1.0]), "median": 1.25}
    each = {
        "largest_difference": 0.0,
        "milliseconds": {"ours": one, "bare": one},
        "added_milliseconds": one,
        "ratio": one,
        "ratio_of_sums": 1.5,
    }
    model = {
        "parameters": 2_000_000,
        "multiply_adds": 3e6,
        "bits_per_pixel": 0.7,
        "seconds": one,
        "ratio": one,
    }
    figures = {"overhead": {"tiny": each}, "speed": {"x": model}, "left_out": ["diffusers VQModel"]}
    text = step.page(figures, tmp_path)
    assert "| tiny | 1.2 (1.0–1.0) |" in text
    assert "25.0 % | 50.0 %" in text
    assert "| x | 2.00 | 3 | 0.70 | 0.80 |" in text
    assert "Not installed, so not measured: diffusers VQModel." in text


@pytest.mark.parametrize("name", peers.peers())
def test_peers_learn(name: str) -> None:
    torch.manual_seed(0)
    one = peers.PeerStep(peers.peers()[name]())
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    made, loss = one.model(images)
    assert made.shape == images.shape
    assert loss.ndim == 0
    before = [each.detach().clone() for each in one.model.parameters()]
    one(images)
    moved = [not torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_the_one_hot_quantizer_finds_and_averages_codes() -> None:
    torch.manual_seed(0)
    quantizer = peers.OneHotQuantizer(decay=0.0).train()
    codes = quantizer.codes.clone()
    latents = codes[:32].view(2, 4, 4, -1).permute(0, 3, 1, 2) + 0.01
    quantized, loss = quantizer(latents)
    assert torch.allclose(quantized.permute(0, 2, 3, 1).flatten(0, 2), codes[:32], atol=1e-6)
    assert loss.item() == pytest.approx(1e-4, rel=1e-3)
    assert torch.allclose(quantizer.codes[:32], codes[:32] + 0.01, atol=1e-2)


def test_the_one_hot_quantizer_has_the_given_size() -> None:
    torch.manual_seed(0)
    codes = torch.randn(7, 3)
    quantizer = peers.OneHotQuantizer(7, 3).train()
    quantizer.place(codes)
    latents = codes[[5, 0]].view(1, 1, 2, 3).permute(0, 3, 1, 2)
    quantized, _, indices = quantizer.quantize(latents)
    assert indices.tolist() == [5, 0]
    assert torch.allclose(quantized, latents, atol=1e-6)
    assert quantizer.counts.tolist() == pytest.approx([0.01, 0, 0, 0, 0, 0.01, 0])
    assert torch.allclose(
        quantizer.sums, 0.99 * codes + 0.01 * codes * quantizer.counts[:, None] * 100
    )


def test_quality_curves_match_the_runs(crops: Path) -> None:
    way = quality.of_ours({**TINY, "steps": 1, "data": {}}, crops, 0.5, 2, 1)
    steps, seconds, psnr = zip(*way, strict=True)
    assert list(steps) == sorted(set(steps))
    assert list(seconds) == sorted(seconds)
    assert all(5 < each < 40 for each in psnr)
    (name,) = [each for each in quality.PEERS if each == step.BASELINE]
    way = quality.of_peer(name, crops, 0.1, 1, 1)
    assert way[-1][0] >= 1
    assert way[-1][1] >= 0.1
    assert 5 < way[-1][2] < 40


def test_quality_needs_its_crops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(quality.VARIABLE, raising=False)
    figures = quality.measure(Settings(quick=True))
    assert "GENKIT_P64" in quality.page(figures, tmp_path)


@DRAWN
def test_the_page_of_quality_shows_when_a_target_was_reached(tmp_path: Path) -> None:
    curves = {"genkit": [(25, 10.0, 24.0), (50, 20.0, 26.5)], "peer": [(25, 11.0, 23.0)]}
    text = quality.page({"every": 25, "curves": curves, "left_out": ["z"]}, tmp_path)
    assert "Not installed, so not measured: z." in text
    assert "| genkit | 20 | 20 | – | – | – | – | 26.50 dB, 50 steps, 20 s |" in text
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.width > 600


def test_the_page_says_what_no_gpu_has_measured(tmp_path: Path) -> None:
    assert page._page(tmp_path).endswith("## genkit on a GPU\n\nNot measured on a GPU.\n")
