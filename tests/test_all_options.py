"""Every component option has an effect: changing it changes the component or is refused."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import tomli_w
import torch
import torchvision
from conftest import MOBILENET, WEIGHTS, invoke, need
from option_looks import another, look
from PIL import Image

from genkit.plugin.conditions import Need
from genkit.plugin.registry import registry
from genkit.run.options import TokenizerRun
from genkit.settings import specs

Key = tuple[str, str]
Settings = Mapping[str, Any]

SMALL = {"width": [8], "latent_channels": 8}
CODES = {"codebook_size": 16}
TINY_FEATURES = {"name": "timm", "model": "test_convnext", "size": 32}
# Small options for each component, so that building it is fast.
BASE: dict[Key, Settings] = {
    ("encoder", "aren"): {**SMALL, "base_channels": 8},
    ("encoder", "timm"): {"model": "test_convnext", "latent_channels": 8},
    ("encoder", "vqgan"): SMALL,
    ("decoder", "mirror"): {"width": [8]},
    ("decoder", "vqgan"): {"width": [8]},
    ("decoder", "residual"): {"width": [8]},
    ("discriminator", "patchgan"): {"width": [4, 4], "strides": [2, 2, 1]},
    ("discriminator", "stylegan"): {"width": [4, 4]},
    ("discriminator", "multiscale"): {"each": {"width": [4, 4], "strides": [2, 2, 1]}},
    ("quantizer", "vq"): CODES,
    **{
        ("quantizer", name): CODES
        for name in (
            "residual-vq",
            "grouped-residual-vq",
            "multi-head-vq",
            "simvq",
            "residual-simvq",
        )
    },
    ("quantizer", "lfq"): {"bits": 4},
    ("quantizer", "bsq"): {"bits": 4},
    **{
        ("prior", name): {"width": 32, "heads": 2, "depth": 1}
        for name in ("autoregressive", "masked")
    },
    ("perceptual", "timm"): {"weights": MOBILENET},
    ("discriminator", "timm"): {"weights": MOBILENET, "width": 8},
    ("dataset", "faces"): {"size": 20, "heldout": 8},
    ("dataset", "folder"): {"location": "{photographs}", "heldout": 0.3},
    ("perceptual", "lpips"): {"net": "squeeze", "weights": "{squeeze}"},
    ("metric", "lpips"): {"net": "squeeze", "weights": "{squeeze}"},
    ("metric", "distances"): {"features": {**TINY_FEATURES, "weights": "{tiny}"}},
    ("features", "timm"): {"model": "test_convnext", "weights": "{tiny}", "size": 32},
}
# Other values where none can be guessed from the type, by kind, name and option.
OTHER: dict[tuple[str, str, str], Any] = {
    ("encoder", "aren", "levels"): 1,
    ("encoder", "aren", "patch"): 1,
    ("encoder", "aren", "base_stride"): 2,
    ("encoder", "aren", "strides"): [8, 16, 32],
    ("encoder", "vqgan", "levels"): 1,
    ("encoder", "vqgan", "strides"): [8, 16, 32],
    ("encoder", "vqgan", "patch"): 1,
    ("encoder", "vqgan", "attention_strides"): [4],
    ("encoder", "timm", "model"): "resnet18",
    ("encoder", "timm", "weights"): MOBILENET,
    ("encoder", "timm", "levels"): 1,
    ("encoder", "timm", "strides"): [8, 16],
    ("decoder", "mirror", "patch"): 1,
    ("decoder", "vqgan", "patch"): 1,
    ("decoder", "vqgan", "attention_strides"): [4],
    ("decoder", "residual", "patch"): 1,
    ("discriminator", "patchgan", "width"): [8, 8],
    ("discriminator", "patchgan", "strides"): [2, 1, 1],
    ("discriminator", "patchgan", "dropout"): 0.5,
    ("discriminator", "stylegan", "group"): 1,
    **{("optimizer", name, "betas"): [0.5, 0.9] for name in ("muon", "adam", "adamw", "timm")},
    ("optimizer", "muon", "momentum"): 0.5,
    ("optimizer", "timm", "algorithm"): "sgd",
    ("discriminator", "multiscale", "each"): {"name": "stylegan", "width": [4, 4]},
    ("discriminator", "multiscale", "scales"): 1,
    **{
        ("quantizer", name, option): value
        for name in ("vq", "residual-vq", "grouped-residual-vq", "multi-head-vq")
        for option, value in (("ema_decay", 0.5), ("revive", 0.0))
    },
    ("quantizer", "residual-fsq", "values"): [4, 5, 5, 5],
    ("quantizer", "zoo-fsq", "values"): [4, 5, 5, 5],
    ("quantizer", "zoo-fsq", "noise"): 0.5,
    ("quantizer", "latent", "values"): [4, 5, 5, 5],
    **{
        ("prior", name, f"{each}dropout"): 0.5
        for name in ("autoregressive", "masked")
        for each in ("", "condition_")
    },
    **{(kind, "timm", "model"): "mobilenetv2_050" for kind in ("perceptual", "discriminator")},
    ("perceptual", "timm", "strides"): [2, 4],
    ("perceptual", "timm", "weights"): "",
    ("discriminator", "timm", "weights"): "",
    ("discriminator", "timm", "strides"): [4, 8],
    ("perceptual", "lpips", "net"): "alex",
    ("perceptual", "lpips", "weights"): "{other}",
    ("metric", "lpips", "net"): "alex",
    ("metric", "lpips", "weights"): "{other}",
    ("metric", "distances", "features"): {**TINY_FEATURES, "weights": "{tiny2}"},
    ("metric", "distances", "figures"): ["kid"],
    ("metric", "distances", "neighbours"): 1,
    ("features", "timm", "model"): "test_convnext2",
    ("features", "timm", "weights"): "{tiny2}",
    ("features", "timm", "size"): 64,
    ("dataset", "faces", "heterochromia"): 1.0,
    ("dataset", "faces", "light"): 0.0,
    ("dataset", "folder", "location"): "{photographs}/a",
    ("dataset", "folder", "heldout"): 0.6,
    ("dataset", "folder", "short_side"): 40,
    ("dataset", "folder", "background"): [0, 0, 0],
    ("dataset", "folder", "range"): [0, 300],
    ("dataset", "folder", "bands"): [3, 1, 2],
    ("dataset", "folder", "max_pixels"): 60 * 48,
    ("dataset", "folder", "heldout_folder"): "{elsewhere}",
}
# Other settings that an option needs to have an effect.
WITH: dict[tuple[str, str, str], Settings] = {
    ("dataset", "folder", "heldout_folder"): {"heldout": 0.1},
    ("encoder", "aren", "attend"): {"attention": "pixel"},
    ("encoder", "vqgan", "shortcut"): {"width": [8, 12, 16]},
    ("decoder", "vqgan", "shortcut"): {"width": [8, 12, 16]},
    ("encoder", "timm", "freeze"): {"model": "mobilenetv2_100", "weights": MOBILENET},
    ("encoder", "timm", "weights"): {"model": "mobilenetv2_100"},
    # The tiny test model expects images in [-1, 1], so normalizing would change nothing.
    ("encoder", "timm", "normalize"): {"model": "mobilenetv2_050"},
    ("quantizer", "vq", "entropy_temperature"): {"entropy_weight": 1.0},
    ("quantizer", "multi-head-vq", "orthogonal_weight"): {"update": "gradient"},
    ("quantizer", "zoo-fsq", "rotate"): {"values": [5, 5, 5]},
}
# Packages that the test of a component or option needs.
PACKAGES: dict[tuple[str, ...], list[str]] = {
    ("perceptual", "timm"): [WEIGHTS],
    ("discriminator", "timm"): [WEIGHTS],
    ("perceptual", "lpips"): ["lpips"],
    ("metric", "lpips"): ["lpips"],
    ("encoder", "timm", "weights"): [WEIGHTS],
    ("encoder", "timm", "freeze"): [WEIGHTS],
}
# Values that are refused, and a part of the message.
REFUSED: dict[tuple[str, str, str], str] = {
    **{
        (kind, "timm", option): text
        for kind in ("perceptual", "discriminator")
        for option, text in (
            ("weights", f"give them with --{kind}.weights"),
            ("model", "mobilenetv2_050"),
        )
    },
    ("perceptual", "lpips", "net"): "alex",
    ("metric", "lpips", "net"): "alex",
    ("features", "timm", "model"): "test_convnext2",
}
# Options that change how work is done but not its result, or that need more than two batches of
# images, and the test of each.
HOW: dict[str, str] = {
    "workers": "test_training.py::test_workers_change_nothing",
    "device": "test_training.py::test_the_device_is_chosen",
    "recompute": "test_recompute.py::test_a_run_ends_with_the_same_bits",
    "compile": "test_compiling.py::test_a_run_resumes_with_and_without",
    "tf32": "test_numerics.py::test_tf32_is_set_and_put_back",
    "deterministic": "test_numerics.py::test_deterministic_algorithms_are_set_and_put_back",
    "metric.distances.reference": (
        "test_distances.py::test_saved_statistics_take_the_place_of_the_images"
    ),
    "metric.distances.save": (
        "test_distances.py::test_saved_statistics_take_the_place_of_the_images"
    ),
    "metric.distances.splits": (
        "test_distances.py::test_the_order_and_size_of_batches_do_not_matter"
    ),
    "dataset.folder.cache": ("test_datasets.py::test_decoded_images_are_kept_up_to_the_cache_size"),
}
# The options of these components are tested in other files.
ELSEWHERE = {
    *(("dataset", "hf"), ("dataset", "shards"), ("features", "inception")),
    *(("importer", name) for name in registry().names("importer")),
}
# Options that also have an effect without what they need, though not a useful one.
WORKS_ANYWAY = {("encoder", "timm", "freeze")}


def ours() -> list[Key]:
    return [
        (component.kind, component.name)
        for plugin in registry().plugins
        if plugin.distribution in ("genkit-vq", "genkit-vq-fsq")
        for component in plugin.components
    ]


def options_of(key: Key) -> list[str]:
    return [field.name for field in dataclasses.fields(registry().component(*key).config)]


CASES = [
    pytest.param(*key, option, id=".".join((*key, option)))
    for key in ours()
    if key not in ELSEWHERE
    for option in options_of(key)
    if ".".join((*key, option)) not in HOW
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths for `{NAME}` above: folders of pictures and files of weights."""
    root = tmp_path_factory.mktemp("places")
    for place, shade in (("photographs/a", 40), ("photographs/b", 90), ("elsewhere", 160)):
        (root / place).mkdir(parents=True)
        for number in range(8):
            image = Image.new("RGBA", (60, 48), (shade, 9 * number, 9, 128))
            image.paste((9, 200, 20 * number, 255), (0, 0, 20, 12))
            image.resize((60 + number // 7, 48)).save(root / place / f"{number}.png")
    for seed, name in enumerate(("squeeze", "other")):
        torch.manual_seed(seed)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), root / f"{name}.pth")
    for seed, name in enumerate(("tiny", "tiny2")):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_convnext").state_dict(), root / f"{name}.pth")
    files = {name: str(root / f"{name}.pth") for name in ("squeeze", "other", "tiny", "tiny2")}
    return files | {name: str(root / name) for name in ("photographs", "elsewhere")}


def filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: filled(item, places) for name, item in value.items()}
    return value.format(**places) if isinstance(value, str) else value


def settings(key: Key, option: str, places: Mapping[str, str]) -> tuple[Settings, Settings]:
    """The base settings, and the same with another value of the option."""
    case = (*key, option)
    base = {**BASE.get(key, {}), **WITH.get(case, {})}
    other = OTHER[case] if case in OTHER else another(*key, option, base)
    return filled(base, places), filled({**base, option: other}, places)


@pytest.mark.parametrize(("kind", "name", "option"), CASES)
def test_an_option_of_a_component(
    kind: str, name: str, option: str, places: dict[str, str]
) -> None:
    need(*PACKAGES.get((kind, name), []), *PACKAGES.get((kind, name, option), []))
    base, other = settings((kind, name), option, places)
    if told := REFUSED.get((kind, name, option)):
        with pytest.raises(Exception, match=told):
            look(kind, name, other)
    else:
        assert look(kind, name, other) != look(kind, name, base)


def broken(key: Key, text: str, base: Settings) -> Settings:
    """Settings that lack something the option needs."""
    need = Need.parse(text)
    spec = next(
        spec for spec in specs(registry().component(*key).config, base) if spec.path == (need.name,)
    )
    if need.value:
        return {need.name: next(name for name in spec.choices if name != need.value)}
    return {need.name: "none" if spec.info.kind else spec.type(0) if spec.type is not str else ""}


def needy() -> list[Any]:
    return [
        pytest.param(*key, spec.path[0], need, id=f"{'.'.join((*key, spec.path[0]))} {need}")
        for key in ours()
        if key not in ELSEWHERE
        for spec in specs(registry().component(*key).config, {})
        if len(spec.path) == 1
        for need in spec.info.needs
    ]


@pytest.mark.parametrize(("kind", "name", "option", "need"), needy())
def test_an_option_really_needs_what_it_declares(
    kind: str, name: str, option: str, need: str, places: dict[str, str]
) -> None:
    """Without it, another value changes nothing."""
    if (kind, name, option) in WORKS_ANYWAY:
        return
    base, other = settings((kind, name), option, places)
    lack = broken((kind, name), need, base)
    assert look(kind, name, {**base, **lack}) == look(kind, name, {**other, **lack})


@pytest.mark.parametrize(("kind", "name", "option", "need"), needy())
def test_a_flag_without_effect_is_refused(
    kind: str, name: str, option: str, need: str, places: dict[str, str], tmp_path: Path
) -> None:
    part = "data" if kind == "dataset" else kind
    base, other = settings((kind, name), option, places)
    lack = broken((kind, name), need, base)
    table = {**{key: value for key, value in base.items() if key != option}, "name": name}
    config: dict[str, Any] = {part: {**table, **lack}, "steps": 0}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config))
    flag = f"--{part}.{option}".replace("_", "-")
    value = other[option]
    if isinstance(value, bool):
        args = [flag if value else flag.replace(f"{part}.", f"{part}.no-")]
    else:
        args = [flag, str(value)]
    code, text = invoke(
        "train", "--config", tmp_path / "config.toml", *args, "--out", tmp_path / "x"
    )
    assert code == 2, text
    assert f"{flag} would do nothing" in " ".join(text.split())
    assert not (tmp_path / "x").exists()


def test_every_component_and_option_is_tested() -> None:
    """A new option without a case fails here, and so does a case for a removed option."""
    assert {key[0] for key in ours()} == {
        "attention",
        "dataset",
        "decoder",
        "discriminator",
        "encoder",
        "features",
        "fusion",
        "importer",
        "loss",
        "optimizer",
        "metric",
        "perceptual",
        "prior",
        "quantizer",
        "schedule",
    }
    known = {(*key, option) for key in ours() for option in options_of(key)}
    assert {*OTHER, *WITH, *REFUSED, *WORKS_ANYWAY} <= known
    assert {*BASE, *ELSEWHERE} <= {*ours()}
    walked = {tuple(case.values) for case in CASES}
    assert {case for case in known - walked if case[:2] not in ELSEWHERE} == {
        tuple(name.split(".")) for name in HOW if "." in name
    }


def test_options_without_effect_on_results_have_their_own_tests() -> None:
    runs = {field.name for field in dataclasses.fields(TokenizerRun)}
    for option, test in HOW.items():
        file, _, name = test.partition("::")
        tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "." in option or option in runs
