"""timm's models as encoders, and the files of their weights, with real ones from a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import MOBILENET, WEIGHTS, genkit_here, lacking, tiny_run
from safetensors.torch import save_file

import genkit
from genkit import testing
from genkit.errors import DataError, GenkitError, OptionError
from genkit.settings import choose

pytestmark = pytest.mark.skipif(
    bool(lacking("lpips", WEIGHTS)), reason="needs lpips and weights: uv sync --all-groups"
)
SMALL = "test_convnext"  # timm's own tiny test model, with 0.3 M parameters.


def build(kind: str, name: str, channels: int = 3, /, **options: Any) -> Any:
    torch.manual_seed(0)
    return choose(kind, {"name": name, **options}).build(channels)


@pytest.mark.parametrize(
    ("model", "strides", "channels"),
    [
        (SMALL, [4, 8, 16], [24, 32, 48]),
        ("convnextv2_atto", [4, 8, 16], [40, 80, 160]),
        ("resnet18", [2, 4, 8], [64, 64, 128]),
        ("mobilenetv2_100", [4, 8, 32], [24, 32, 320]),
        ("swin_tiny_patch4_window7_224", [4, 8, 16], [96, 192, 384]),
    ],
)
def test_models_of_many_kinds_are_encoders(
    model: str, strides: list[int], channels: list[int]
) -> None:
    options = {"model": model, "strides": strides, "levels": 3, "latent_channels": 8}
    encoder = build("encoder", "timm", **options)
    assert [level.stride for level in encoder.levels] == strides
    assert encoder.features.widths == channels
    size = 4 * strides[-1]
    latents = encoder(torch.zeros(1, 3, size, 2 * size))
    assert [tuple(each.shape) for each in latents] == [
        (1, 8, size // stride, 2 * size // stride) for stride in strides
    ]


def test_the_contract_of_an_encoder() -> None:
    for levels in (1, 2, 3):
        testing.check_encoder("timm", model=SMALL, levels=levels)
    testing.check_encoder("timm", model=SMALL, freeze=True, normalize=False)
    testing.check_encoder("timm", model="vit_tiny_patch16_224", levels=1, strides=[16])


def test_torchvisions_weights_fit_timms_model() -> None:
    """The names differ; the outputs equal torchvision's own model's up to rounding."""
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict(torch.load(MOBILENET, weights_only=True))
    theirs.eval()
    strides = [2, 4, 8, 16, 32]
    encoder = build(
        "encoder", "timm", model="mobilenetv2_100", weights=MOBILENET, levels=5, strides=strides
    ).eval()
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x, maps = ((images + 1) / 2 - mean) / std, []
    for number, layer in enumerate(theirs.features):
        x = layer(x)
        if number in (1, 3, 6, 13, 17):
            maps.append(x)
    for found, wanted in zip(encoder.features(images), maps, strict=True):
        assert torch.allclose(found, wanted, atol=1e-3), (found - wanted).abs().max()


def test_a_trained_model_loads_without_its_weights_file(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model(SMALL).state_dict(), weights)
    encoder = {"name": "timm", "model": SMALL, "weights": str(weights), "latent_channels": 8}
    tiny_run(tmp_path / "run", {"encoder": encoder})
    weights.unlink()
    tokenizer = genkit.load(tmp_path / "run")
    assert tokenizer.options.encoder.options.weights == ""
    info = genkit.inspect(tmp_path / "run")
    assert "weights" not in info["components"]["encoder"]["options"]
    assert str(tmp_path) not in str(info["components"])
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    assert tokenizer(images).images.shape == images.shape


def test_a_frozen_model_does_not_change(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model(SMALL).state_dict(), weights)
    for freeze in (True, False):
        out = tmp_path / str(freeze)
        encoder = {"name": "timm", "model": SMALL, "weights": str(weights), "freeze": freeze}
        tiny_run(out, {"encoder": {**encoder, "latent_channels": 8}, "ema": 0.0})
        before = build("encoder", "timm", model=SMALL, weights=str(weights)).features.state_dict()
        after = genkit.load(out).encoder.features.state_dict()
        same = all(torch.equal(after[name], value) for name, value in before.items())
        assert same == freeze


def test_batch_statistics_of_a_frozen_model_do_not_change() -> None:
    encoder = build("encoder", "timm", model="resnet18", freeze=True, levels=1)
    before = {name: value.clone() for name, value in encoder.features.state_dict().items()}
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32))
    assert encoder.training
    after = encoder.features.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_images_are_normalized_for_the_model() -> None:
    encoder = build("encoder", "timm", model="resnet18")
    seen = []
    encoder.features.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    white = torch.ones(1, 3, 32, 32)
    encoder(white)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(seen[0][0, :, 0, 0], expected, atol=1e-5)
    plain = build("encoder", "timm", model="resnet18", normalize=False)
    plain.features.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain(white)
    assert torch.equal(seen[1], white)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "convnext_tinny"}, "timm has no model 'convnext_tinny'. Did you mean"),
        (
            {"strides": [2, 4]},
            f"{SMALL} has no feature maps with strides 2: choose from 4, 8, 16, 32 with --encoder.",
        ),
        ({"levels": 5}, "5 levels need at least 5 strides"),
        (
            {"model": "vit_tiny_patch16_224"},
            "strides 4, 8: choose from 16 with --encoder.strides",
        ),
        ({"weights": "nowhere.pth"}, "the weights file '.*nowhere.pth' does not exist"),
        ({"weights": __file__}, ": it must be a .safetensors or .pth file with only tensors"),
        ({"weights": MOBILENET}, "they are another model's weights"),
        ({"model": "mobilenetv2_110d", "weights": MOBILENET}, "another model's weights"),
    ],
)
def test_unsuitable_models_say_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build("encoder", "timm", **{"model": SMALL, **options})


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    wrong = timm.create_model(SMALL).state_dict()
    first = next(iter(wrong))
    wrong[first] = torch.zeros(7, 3, 4, 4)
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(
        DataError, match=rf"do not fit {SMALL}: the shape of {first} is \[7, 3, 4, 4\], not"
    ):
        build("encoder", "timm", model=SMALL, weights=str(tmp_path / "wrong.safetensors"))


def test_an_unreachable_hub_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--steps", "0", "--encoder", "timm", "--encoder.model", "resnet18", "--weights", "hub"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = genkit_here("train", *args, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "Error: timm's weights of resnet18 cannot be downloaded" in done.stderr
    assert "the hub cannot be reached" in done.stderr
    assert "set the option weights to a local file" in done.stderr
    assert done.stderr.count("\n") == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_strides_do_not_divide_is_reported(tmp_path: Path) -> None:
    encoder = {"name": "timm", "model": SMALL, "levels": 3}
    with pytest.raises(OptionError, match="must be a multiple of the coarsest level's stride, 16"):
        tiny_run(tmp_path / "run", {"encoder": encoder, "resolution": 40})


class Evil:
    """Writes a file when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="weights cannot be read from"):
        build("encoder", "timm", model=SMALL, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_names_that_differ_need_an_order(tmp_path: Path) -> None:
    state = torch.load(MOBILENET, weights_only=True)
    save_file(state, tmp_path / "mobilenet.safetensors")
    with pytest.raises(DataError, match=r"give the \.pth file"):
        build("perceptual", "timm", weights=str(tmp_path / "mobilenet.safetensors"))


def test_a_model_loads_where_gradients_are_off(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", {"encoder": {"name": "timm", "model": SMALL}, "steps": 0})
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = genkit.load(tmp_path / "run").encode(images)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = genkit.load(tmp_path / "run").encode(images)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_weights_without_a_head_are_enough(tmp_path: Path) -> None:
    """A file without a head, or with a head for other classes, has all weights of the features."""
    torch.manual_seed(7)
    whole = timm.create_model("resnet18").state_dict()
    files = {
        "none": {name: value for name, value in whole.items() if not name.startswith("fc.")},
        "ten": {**whole, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)},
        "old": {n: value for n, value in whole.items() if not n.endswith("num_batches_tracked")},
    }
    for name, state in files.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        found = build(
            "encoder", "timm", model="resnet18", weights=str(tmp_path / f"{name}.safetensors")
        ).features.net.state_dict()
        assert torch.equal(found["conv1.weight"], whole["conv1.weight"])
        assert torch.equal(found["layer1.0.conv1.weight"], whole["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("model", "stages"),
    [("mobilenetv2_100", 3), ("mobilenetv3_small_050", 2), ("efficientnet_b0", 3)],
)
def test_unused_stages_are_left_out(model: str, stages: int) -> None:
    encoder = build("encoder", "timm", model=model, levels=2)
    assert len(encoder.features.net.blocks) == stages
    images = torch.zeros(1, 3, 16, 16)
    assert [tuple(each.shape[2:]) for each in encoder(images)] == [(4, 4), (2, 2)]
    sum(each.square().sum() for each in encoder(images)).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
