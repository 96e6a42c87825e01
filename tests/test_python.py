"""Use from Python: training, registering a component, and how it is saved."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, invoke, same, weights
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces
from PIL import Image
from torch import Tensor, nn

import genkit
from genkit import Component, Level, NoOptions, Quantized, option
from genkit.data.given import TorchImages
from genkit.errors import (
    DataError,
    MissingComponent,
    OptionError,
    PluginError,
    TrainingError,
    UnreadableImage,
)
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


class Squares(torch.utils.data.Dataset[Any]):
    """Items as torchvision gives them: an image and its label."""

    classes = ("dark", "light")

    def __init__(self, form: str, count: int = 24) -> None:
        self.form, self.count = form, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        grey = torch.full((3, 32, 32), number * 9 % 256, dtype=torch.uint8)
        if self.form == "pil":
            return Image.fromarray(grey.permute(1, 2, 0).numpy()).resize((50, 40)), number % 2
        return (grey.float() / 255 if self.form == "float" else grey[:1]), number % 2


@pytest.mark.parametrize(("form", "channels"), [("pil", 3), ("float", 3), ("grey", 1)])
def test_a_torch_data_set_is_trained_on_and_encoded(
    form: str, channels: int, tmp_path: Path
) -> None:
    settings = {key: value for key, value in TINY.items() if key != "data"}
    tokenizer = genkit.train(settings, out=tmp_path / "run", data=Squares(form))
    assert tokenizer.channels == channels
    data = TorchImages(Squares(form), (32, 32))
    assert [len(data.split(name)) for name in ("train", "heldout", "all")] == [22, 2, 24]
    tokens = genkit.encode(tokenizer, data)
    assert tokens.names == [f"{number:08d}" for number in range(24)]
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [0, 1] * 12
    record = genkit.evaluate(tokenizer, data=data, split="heldout", by_class=True)
    assert [row["name"] for row in record["classes"]] == ["light"]
    with pytest.raises(TrainingError, match="training data have changed"):
        genkit.train({"steps": 9}, out=tmp_path / "run", data=Squares(form, 30), resume=True)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 16, 16), r"\[C, 32, 32\] for --resolution 32, not \[3, 16, 16\]"),
        (torch.full((3, 32, 32), 7.0), r"floats must lie in \[0, 1\]"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "must be uint8 or floats"),
    ],
)
def test_a_wrong_image_of_a_torch_data_set_is_named(image: Tensor, message: str) -> None:
    with pytest.raises(UnreadableImage, match=f"00000000 cannot be read: .*{message}"):
        genkit.train(TINY | {"data": {}}, data=[image, image])
    with pytest.raises(DataError, match="int is not a data set: give a name, a folder"):
        genkit.train(TINY, data=3)


def test_an_object_of_the_protocol_is_trained_on(tmp_path: Path) -> None:
    data = Faces(FacesOptions(size=20, heldout=8), (32, 32), 0)
    settings = {key: value for key, value in TINY.items() if key != "data"}
    genkit.train(settings, out=tmp_path / "object", data=data)
    named = {"name": "faces", "size": 20, "heldout": 8}
    genkit.train(settings, out=tmp_path / "name", data=named)
    assert same(weights(tmp_path / "object"), weights(tmp_path / "name"))


def test_the_pages_python_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parent.parent / "docs" / "python.md"
    code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    assert len(code) >= 8
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block.replace('"steps": 300', '"steps": 2'), "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "PSNR" in printed
    assert "256 images" in printed
    assert "torch.Size([8, 3, 32, 32])" in printed
    assert re.search(r"\d\.\d{3} bits per pixel, \d\.\d{3} without the prior", printed)
    assert names["completed"].shape == (4, 3, 32, 32)
    registry()._components.pop(("quantizer", "sign"), None)


def test_the_package_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "genkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"genkit, version {genkit.__version__}\n"
