"""timm's models as encoders and as perceptual losses, with real weights from a package."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import MOBILENET, WEIGHTS, genkit_here, invoke, lacking, rows, tiny_run
from safetensors.torch import load_file, save_file

import genkit
from genkit import testing
from genkit.errors import DataError, GenkitError, OptionError, PluginError
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
    images = genkit.images.from_uint8(torch.from_numpy(faces.images(range(8))))
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
    with pytest.raises(OptionError, match="images must have 1 or 3 channels, not 4"):
        choose("metric", {"name": "lpips", **options}).build(4)
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
