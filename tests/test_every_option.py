"""No option is dead: each one, changed, changes the model, the training or the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MOBILENET, TINY, tiny_run
from genkit_cli.params import nested
from PIL import Image
from safetensors.torch import load_file

from genkit.options import specs
from genkit.run import Run, layered

# Every component at once, with the conditions under which all of its options matter.
BASE: dict[str, Any] = {
    "encoder": {"attention": "pixel"},
    "quantizer": {"revive": 1.0},
    "discriminator": "patchgan",
    "discriminator_ramp": 4,
    "data": {"size": 20},
    "weight_decay": 0.01,
    "optimizer": "adamw",
}
FOLDER = {"name": "folder", "heldout": 0.3}
PERCEPTUAL = {"name": "timm", "weights": MOBILENET}

# Another value for each option whose next value cannot be guessed from its type.
OTHER: dict[str, Any] = {
    "quantizer": {"name": "fsq", "bins": 3},
    "data": None,
    "discriminator": "none",
    "perceptual": PERCEPTUAL,
    "encoder": {"name": "timm", "model": "test_convnext"},
    "encoder.attention": "none",
    "encoder.levels": 1,
    "encoder.width": [6],
    "encoder.strides": [8, 16, 32],
    "encoder.base_stride": 2,
    "decoder.width": [6],
    "resolution": 48,
    "optimizer": "lion",
    "discriminator_optimizer": "sgd",
    "betas": [0.5, 0.9],
    "ema": 0.05,
    "mixed_precision": "bf16",
    "tracker": "tensorboard",
    "final_lr": 0.9,
    "lecam_decay": 0.5,
    "clip": 0.001,
    "discriminator.strides": [1, 2, 2, 1, 1, 2],
    "discriminator.width": [16, 16, 16, 16, 16],
    "discriminator.dropout": 0.5,
    "data.location": None,
    "data.heterochromia": 1.0,
    "data.short_side": 40,
    "data.split_seed": 1,
    "data.background": [0, 0, 0],
    "quantizer.ema_decay": 0.5,
    "data.heldout_folder": None,
    "quantizer.revive": 0.0,
    # These change how the work is done and not what comes of it, which other tests show.
    "workers": None,
    "data.cache": None,
    "keep": 1,
}
# What an option needs beside it in order to matter.
NEEDS: dict[str, Mapping[str, Any]] = {
    "encoder.attend": {"encoder": {"width": [8]}},
    "quantizer.distance": {"quantizer": {"commitment_weight": 1.0}},
    "quantizer.entropy_temperature": {"quantizer": {"entropy_weight": 1.0}},
    "data.heldout": {"validation_images": 64},
    "final_lr": {"schedule": "cosine"},
    "perceptual_weight": {"perceptual": PERCEPTUAL},
    "lecam_decay": {"lecam_weight": 0.1},
    "r1_every": {"r1_weight": 0.1, "r1_every": 2},
}


def written(out: Path) -> tuple[Any, ...]:
    """What a run leaves behind, but for its config and its speed."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["images_per_second"], row["memory_mb"]
    weights = {name: value.tolist() for name, value in load_file(out / "model.safetensors").items()}
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return rows, weights, names


def changed(value: Any, type_: Any, choices: list[str]) -> Any:
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple | list):
        return [item * 2 for item in value]
    return value * 2 if value else type_(1)


def cases(settings: Mapping[str, Any], only: str = "") -> list[Any]:
    result = []
    for spec in specs(Run, layered(None, TINY, settings)):
        name = ".".join(spec.path)
        one_choice = len(spec.choices) == 1
        if one_choice or not name.startswith(only) or (name in OTHER and OTHER[name] is None):
            continue
        other = OTHER[name] if name in OTHER else changed(spec.value, spec.type, spec.choices)
        result.append(pytest.param(spec.path, other, id=name))
    return result


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    out = tmp_path_factory.mktemp("base") / "run"
    tiny_run(out, BASE)
    return written(out)


@pytest.mark.parametrize(("path", "other"), cases(BASE))
def test_an_option_of_a_run_with_everything(
    path: tuple[str, ...], other: Any, base: tuple[Any, ...], tmp_path: Path
) -> None:
    needs = NEEDS.get(".".join(path), {})
    if needs:
        tiny_run(tmp_path / "base", BASE, needs)
        base = written(tmp_path / "base")
    tiny_run(tmp_path / "run", BASE, needs, nested({path: other}))
    assert written(tmp_path / "run") != base


@pytest.mark.parametrize(("path", "other"), cases({"data": FOLDER}, only="data."))
def test_an_option_of_a_folder(
    path: tuple[str, ...], other: Any, photographs: Path, tmp_path: Path
) -> None:
    for file in photographs.rglob("*.png"):
        with Image.open(file) as image:
            clear = image.convert("RGBA")
        clear.putalpha(128)
        clear.save(file)
    settings = {"data": {**FOLDER, "location": str(photographs)}}
    tiny_run(tmp_path / "base", settings)
    tiny_run(tmp_path / "run", settings, nested({path: other}))
    assert written(tmp_path / "run") != written(tmp_path / "base")


def test_options_that_change_nothing_are_few_and_known() -> None:
    assert {name for name, value in OTHER.items() if value is None} == {
        "data",
        "data.location",
        "data.heldout_folder",
        "data.cache",
        "workers",
    }
