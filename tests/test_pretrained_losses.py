"""Perceptual losses and discriminators on pretrained networks, with real weights from a package."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import MOBILENET, WEIGHTS, invoke, lacking, rows, tiny_run
from safetensors.torch import load_file

import genkit
from genkit import testing
from genkit.errors import DataError, PluginError
from genkit.settings import choose

pytestmark = pytest.mark.skipif(
    bool(lacking("lpips", WEIGHTS)), reason="needs lpips and weights: uv sync --all-groups"
)


def build(kind: str, name: str, channels: int = 3, /, **options: Any) -> Any:
    torch.manual_seed(0)
    return choose(kind, {"name": name, **options}).build(channels)


PERCEPTUAL = {"name": "timm", "weights": MOBILENET}


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_the_contract_of_a_perceptual_loss(distance: str) -> None:
    testing.check_perceptual("timm", weights=MOBILENET, distance=distance)
    testing.check_perceptual("timm", weights=MOBILENET, strides=[8])


def test_the_perceptual_loss_matches_its_formula() -> None:
    loss = build("perceptual", "timm", weights=MOBILENET, strides=[4, 8]).eval()
    images, made = torch.rand(2, 2, 3, 32, 48).unbind()
    total = 0.0
    for f, g in zip(loss.features(made), loss.features(images), strict=True):
        f, g = ((x / x.norm(dim=1, keepdim=True)).detach() for x in (f, g))
        total += float((f - g).square().sum(1).mean()) / 2
    assert float(loss(made, images).detach()) == pytest.approx(total, rel=1e-4)


def test_a_perceptual_loss_rises_with_visible_changes() -> None:
    """More for a blur or a change of structure than for a brightness shift of equal error."""
    loss = build("perceptual", "timm", weights=MOBILENET).eval()
    faces = choose("dataset", "faces").build((64, 64), 0).split("train")
    images = genkit.images.from_pixels(torch.from_numpy(faces.images(range(8))))
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
    error = (blurred - images).square().mean().sqrt()
    brighter = images + error
    with torch.no_grad():
        assert loss(blurred, images) > 2 * loss(brighter, images)
        worse = torch.nn.functional.avg_pool2d(images, 9, 1, 4, count_include_pad=False)
        assert loss(worse, images) > loss(blurred, images)


def test_a_run_with_a_perceptual_loss(tmp_path: Path) -> None:
    """It is logged and changes the training, and no file of the run contains it."""
    tiny_run(tmp_path / "plain")
    tiny_run(tmp_path / "seen", {"perceptual": PERCEPTUAL, "perceptual_weight": 0.5})
    row = rows(tmp_path / "seen")[-1]
    assert row["perceptual"] > 0
    parts = row["reconstruction"] + row["quantization"] + row["perceptual"]
    assert row["loss"] == pytest.approx(parts, rel=1e-5)
    plain, seen = (genkit.load(tmp_path / name).state_dict() for name in ("plain", "seen"))
    assert plain.keys() == seen.keys()
    assert not all(torch.equal(seen[name], value) for name, value in plain.items())
    state = next((tmp_path / "seen" / "checkpoints").glob("*/state.json")).read_text()
    assert "features" not in state
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors"))
        for name in ("plain", "seen")
    ]
    assert sizes[1] - sizes[0] < 2000


def test_the_contract_of_a_discriminator_on_frozen_features() -> None:
    testing.check_discriminator("timm", weights=MOBILENET)
    testing.check_discriminator("timm", 1, weights=MOBILENET, strides=[8])


def test_a_discriminator_trains_its_heads_and_keeps_its_features(tmp_path: Path) -> None:
    settings = {"name": "timm", "weights": MOBILENET}
    whole = build("discriminator", "timm", weights=MOBILENET).train()
    assert not any(each.training for each in whole.features.modules())
    assert whole(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 3 * 16, 16)
    adversarial = {"discriminator": settings, "discriminator_head_start": 0}
    tiny_run(tmp_path, adversarial, {"checkpoint_every": 1, "keep": 9, "steps": 2})
    first, second = (
        load_file(each / "tensors.safetensors") for each in sorted(tmp_path.glob("checkpoints/*"))
    )
    before = "/modules/discriminator/"
    for name, value in whole.state_dict().items():
        if name.startswith("features"):
            assert torch.equal(first[before + name], value), name
            assert torch.equal(second[before + name], value), name
        elif name.endswith("weight"):
            assert not torch.equal(first[before + name], second[before + name]), name


def test_the_adversarial_preset_joins_any_model(tmp_path: Path) -> None:
    preset = ("--preset", "adversarial", "--discriminator.weights", MOBILENET)
    tiny = ("--encoder.width", "8", "--decoder.width", "8", "--base-channels", "8")
    steps = ("--steps", "2", "--discriminator-head-start", "0", "--resolution", "32")
    code, text = invoke("train", *preset, *tiny, *steps, "--out", tmp_path / "run")
    assert code == 0, text
    assert 0 < rows(tmp_path / "run")[-1]["adversarial_weight"] < 0.5


def test_missing_weights_are_an_error_with_advice(tmp_path: Path) -> None:
    for kind, name in (("perceptual", "timm"), ("perceptual", "lpips"), ("discriminator", "timm")):
        code, text = invoke("train", f"--{kind}", name, "--steps", "1", "--out", tmp_path / name)
        assert code == 2
        assert f"--{kind}.weights FILE" in text
        assert f"--{kind}.weights hub" in text
        assert not (tmp_path / name).exists()


def test_its_weight_alone_has_no_effect() -> None:
    code, text = invoke("train", "--perceptual-weight", "2")
    assert code == 2
    assert "without --perceptual NAME, --perceptual-weight would do nothing" in text


def test_lpips_with_a_local_file_matches_the_package(tmp_path: Path) -> None:
    """The linear weights are the package's; the network's are made up and read from the file."""
    torch.manual_seed(5)
    network = torchvision.models.squeezenet1_1()
    torch.save(network.state_dict(), tmp_path / "squeeze.pth")
    ours = build("perceptual", "lpips", net="squeeze", weights=str(tmp_path / "squeeze.pth"))
    ours.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for part in theirs.net.children():
        for number, layer in part.named_children():
            layer.load_state_dict(network.features[int(number)].state_dict())
    images, made = (torch.rand(2, 2, 3, 64, 64) * 2 - 1).unbind()
    assert torch.allclose(ours(made, images), theirs(made, images).mean())
    options = {"net": "squeeze", "weights": str(tmp_path / "squeeze.pth")}
    metric = choose("metric", {"name": "lpips", **options}).build(3)
    assert torch.allclose(metric.update(images, made).float(), theirs(made, images).flatten())
    testing.check_metric("lpips", processes=1, **options)
    bands = choose("metric", {"name": "lpips", **options}).build(5)
    more = [torch.cat([each, each[:, :2]], 1) for each in (images, made)]
    assert torch.equal(bands.update(*more), metric.update(images, made))
    assert bands.note == "LPIPS sees the first three of 5 channels."
    testing.check_perceptual("lpips", net="squeeze", weights=str(tmp_path / "squeeze.pth"))
    with pytest.raises(DataError, match="another model's weights"):
        build("perceptual", "lpips", net="alex", weights=str(tmp_path / "squeeze.pth"))


def test_figures_of_other_lpips_weights_are_not_compared(trained: Path, tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / f"{number}.pth")
    shutil.copy(tmp_path / "1.pth", tmp_path / "2.pth")
    for number in range(3):
        metric = f"lpips?net=squeeze&weights={tmp_path / f'{number}.pth'}"
        out = ("--images", "1", "--out", tmp_path / f"{number}.json")
        code, text = invoke("evaluate", trained, "--metric", metric, *out)
        assert code == 0, text
    code, text = invoke("compare", tmp_path / "0.json", tmp_path / "1.json")
    assert code == 1
    assert re.search("the metric lpips has the options .*weights_hash", " ".join(text.split()))
    assert str(tmp_path) not in (tmp_path / "1.json").read_text()
    # The same weights under another path pass this check, and fail the next one.
    assert "are the same model" in invoke("compare", tmp_path / "1.json", tmp_path / "2.json")[1]


def test_lpips_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "genkit_backbones.lpips", raising=False)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(PluginError, match=r"pip install 'genkit-vq\[lpips\]'"):
        build("perceptual", "lpips")
