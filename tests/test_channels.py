"""Images of one and four channels, not square, through every component that sees images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MOBILENET, TINY, Silent, invoke, tiny_run
from torch import nn

import genkit
from genkit import GenkitError, Subset, testing
from genkit.checkpoint.header import read_header
from genkit.images import as_rgb, rgb_note, save_png
from genkit.plugin.registry import registry
from genkit.run.options import layered, resolve_run
from genkit.settings import choose

CHECKS = [
    (kind, name)
    for kind in ("encoder", "decoder", "discriminator")
    for name in registry().names(kind)
    # The one refuses to be built, the other sees colours alone.
    if (kind, name) not in {("decoder", "no-decoder"), ("discriminator", "timm")}
]


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(("kind", "name"), CHECKS)
def test_every_component_takes_images_of_other_channels(
    kind: str, name: str, channels: int
) -> None:
    size = ((64, 96),) if kind == "encoder" else ()
    getattr(testing, f"check_{kind}")(name, *size, channels)


@pytest.mark.skipif(not MOBILENET, reason="needs weights")
def test_a_perceptual_loss_repeats_a_grey_channel_and_takes_three_of_more() -> None:
    options = {"name": "timm", "weights": str(MOBILENET)}
    testing.check_perceptual("timm", 5, weights=str(MOBILENET))
    grey, colour = (choose("perceptual", options).build(count).eval() for count in (1, 3))
    images, made = (torch.rand(2, 1, 64, 64) * 2 - 1 for _ in range(2))
    found = colour(made.repeat(1, 3, 1, 1), images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(grey(made, images), found)
    assert grey.note == "The perceptual loss mobilenetv2_100 repeats the grey channel."
    bands = choose("perceptual", options).build(5).eval()
    assert bands.note.endswith("mobilenetv2_100 sees the first three of 5 channels.")
    images, made = (torch.rand(2, 5, 64, 64) * 2 - 1 for _ in range(2))
    torch.testing.assert_close(bands(made, images), colour(made[:, :3], images[:, :3]))


class Depths:
    """Noise of one channel, brighter to the right."""

    fingerprint, channels = "depths", 1

    def __init__(self, options: Any, size: tuple[int, int], seed: int) -> None:
        self.size, self.classes = size, []

    def split(self, name: str) -> Subset:
        return Subset(self, range(16) if name == "train" else range(16, 24))

    def name(self, number: int) -> str:
        return str(number)

    def images(self, numbers: Any, seeds: Any = None) -> Any:
        ramp = np.linspace(0, 200, self.size[1])[None, :, None]
        noise = [np.random.default_rng(n).integers(0, 50, (*self.size, 1)) for n in numbers]
        return (np.stack(noise) + ramp).astype(np.uint8)


class Sees(nn.Module):
    """A perceptual loss with a note."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.note = rgb_note("It", channels)

    def forward(self, reconstructions: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return (as_rgb(reconstructions) - as_rgb(images)).square().mean()


def test_notes_of_networks_are_those_of_the_run(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("dataset", Depths)
    install("perceptual", Sees)
    notes: list[str] = []
    reporter = Silent()
    monkeypatch.setattr(
        reporter, "begin", lambda run, path, step, summary, facts: notes.extend(summary.notes)
    )
    settings = {"data": {"name": "mine"}, "perceptual": {"name": "mine"}, "steps": 1}
    tiny_run(tmp_path / "run", settings, {"workers": 0}, reporter=reporter)
    assert notes == ["It repeats the grey channel."]


def test_a_run_on_grey_images(install: Any, tmp_path: Path) -> None:
    install("dataset", Depths)
    run = tmp_path / "run"
    against = {"discriminator": "patchgan", "discriminator_head_start": 1}
    settings = {"data": {"name": "mine"}, "steps": 2, **against}
    tiny_run(run, settings, {"workers": 1})
    tokenizer = genkit.load(run)
    assert tokenizer.channels == genkit.inspect(run)["channels"] == 1
    assert "images: 1 channels" in invoke("inspect", run)[1]
    images = torch.rand(2, 1, 16, 48) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(images)).shape == (2, 1, 16, 48)
    assert tokenizer.decode(tokenizer.encode(images[:0])).shape == (0, 1, 16, 48)
    with pytest.raises(GenkitError, match=r"floats \[B, 1, H, W\]"):
        tokenizer.encode(images.repeat(1, 3, 1, 1))
    assert (run / "samples" / "step-000002.png").is_file()
    code, output = invoke("push", run, "me/grey", "--folder", tmp_path / "published")
    assert code == 0, output
    assert genkit.load(tmp_path / "published").channels == 1
    card = (tmp_path / "published" / "README.md").read_text(encoding="utf-8")
    assert "# Images are [B, 1, H, W] in [-1, 1]" in card


def test_a_model_file_without_channels_has_three(trained: Path, tmp_path: Path) -> None:
    model = (trained / "model.safetensors").read_bytes()
    length = int.from_bytes(model[:8], "little")
    header = json.loads(model[8 : 8 + length])
    info = json.loads(header["__metadata__"]["genkit"])
    assert info.pop("channels") == 3
    header["__metadata__"]["genkit"] = json.dumps(info)
    text = json.dumps(header).encode()
    old = tmp_path / "old.safetensors"
    old.write_bytes(len(text).to_bytes(8, "little") + text + model[8 + length :])
    assert "channels" not in json.loads(read_header(old)[0]["genkit"])
    assert genkit.load(old).channels == genkit.inspect(old)["channels"] == 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_pictures_of_any_number_of_channels(channels: int, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    save_png(tmp_path / "a.png", pixels)
    found = np.asarray(Image.open(tmp_path / "a.png"))
    assert (found == (pixels[:, :, {1: 0, 2: 0, 5: slice(3)}.get(channels, slice(4))])).all()


def test_a_grid_matches_the_image_size() -> None:
    assert genkit.Level(1, 8, 16).grid(64, 96) == (4, 6)
    run = resolve_run(layered(None, TINY))
    assert genkit.Tokenizer(run, 4).eval()(torch.zeros(1, 4, 32, 64)).images.shape == (1, 4, 32, 64)
