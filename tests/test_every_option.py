"""Every option of `train` has an effect: changing it changes the training or the files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MOBILENET, WEIGHTS, invoke, need, tiny_run
from genkit_cli.flags import check_not_idle
from option_looks import next_value
from safetensors.torch import load_file
from test_all_options import HOW

from genkit.errors import TrainingError
from genkit.run.options import TokenizerRun, layered
from genkit.settings import specs

# A run with every component, so that nearly all options have an effect.
BASE: dict[str, Any] = {
    "steps": 4,
    "validate_every": 4,
    "checkpoint_every": 2,
    "discriminator": {"name": "patchgan", "width": [8, 8], "strides": [2, 2, 1]},
    "discriminator_head_start": 1,
    "discriminator_ramp": 4,
    "data": {"size": 20},
    "optimizer": {"name": "adamw", "weight_decay": 0.01},
}
PERCEPTUAL = {"name": "timm", "weights": MOBILENET}
# Another value for each option where it cannot be guessed from the type.
OTHER: dict[str, Any] = {
    "encoder": {"name": "vqgan", "width": [8], "latent_channels": 8},
    "quantizer": {"name": "fsq", "bins": 3},
    "decoder": {"name": "residual", "width": [8]},
    "fusion": {"width": 4},
    "data": {"noise": 0.0},
    "discriminator": "none",
    "perceptual": PERCEPTUAL,
    "resolution": 48,
    "optimizer": "lion",
    "discriminator_optimizer": "sgd",
    "ema": 0.05,
    "mixed_precision": "bf16",
    "tracker": "tensorboard",
    "lecam_decay": 0.5,
    "clip": 0.001,
    "keep": 1,
    "log_every": 1,
    "report": True,
    "validate_every": 2,
    "adversarial_loss": "bce",
    "adversarial_limit": 0.01,
}
# Other settings that an option needs to have an effect.
WITH: dict[str, Mapping[str, Any]] = {
    "perceptual_weight": {"perceptual": PERCEPTUAL},
    "lecam_decay": {"lecam_weight": 0.1},
    "r1_every": {"r1_weight": 0.1, "r1_every": 2},
    "adversarial_limit": {"adversarial_adaptive": True},
}
# Packages that options need.
PACKAGES = {
    "perceptual": [WEIGHTS],
    "perceptual_weight": [WEIGHTS],
    "tracker": ["tensorboard"],
}
# Options with tests of their own: below, in test_fine_tuning.py and in test_trackers.py.
ELSEWHERE = {"max_skipped", "from_", "trainable", "project", "run_name"}

NAMES = [field.name for field in dataclasses.fields(TokenizerRun)]
NEEDY = [
    spec for spec in specs(TokenizerRun, layered(None)) if len(spec.path) == 1 and spec.info.needs
]


def written(out: Path) -> tuple[Any, ...]:
    """The output of a run, except its config and timings."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["images_per_second"], row["waiting"], row["memory_mb"]
    weights = {name: value.tolist() for name, value in load_file(out / "model.safetensors").items()}
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return rows, weights, names


def other_value(name: str, settings: Mapping[str, Any]) -> Any:
    if name in OTHER:
        return OTHER[name]
    spec = next(
        spec for spec in specs(TokenizerRun, layered(None, settings)) if spec.path == (name,)
    )
    return next_value(spec.value, spec.type, spec.choices)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    out = tmp_path_factory.mktemp("base") / "run"
    tiny_run(out, BASE)
    return written(out)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*HOW, *ELSEWHERE}])
def test_an_option_of_a_run(name: str, base: tuple[Any, ...], tmp_path: Path) -> None:
    need(*PACKAGES.get(name, []))
    needs = WITH.get(name, {})
    if needs:
        tiny_run(tmp_path / "base", BASE, needs)
        base = written(tmp_path / "base")
    tiny_run(tmp_path / "run", BASE, needs, {name: other_value(name, {**BASE, **needs})})
    assert written(tmp_path / "run") != base


@pytest.mark.parametrize("steps", [2, 3])
def test_max_skipped_limits_the_skipped_steps(steps: int, tmp_path: Path) -> None:
    wild = {"lr": 1e20, "clip": 0, "warmup": 0, "steps": 30, "max_skipped": steps}
    with pytest.raises(TrainingError, match=f"^{steps} steps in a row were skipped"):
        tiny_run(tmp_path / "run", wild)


@pytest.mark.parametrize(
    ("without", "names"),
    [
        (
            {"discriminator": "none"},
            [
                spec.path[0]
                for spec in NEEDY
                if {"discriminator", "perceptual"} & {*spec.info.needs}
            ],
        ),
        (
            {"adversarial_weight": 0.0},
            [
                *("adversarial_adaptive", "adversarial_limit"),
                *("discriminator_head_start", "discriminator_ramp"),
            ],
        ),
        ({}, ["lecam_decay", "r1_every", "adversarial_limit"]),
        ({"encoder": {"levels": 1}}, ["fusion"]),
        ({"reconstruction_weight": 0.0}, ["reconstruction"]),
    ],
    ids=["parts", "adversarial_weight", "own weights", "levels", "reconstruction_weight"],
)
def test_options_really_need_what_they_declare(
    without: Mapping[str, Any], names: list[str], tmp_path: Path
) -> None:
    """Without it, other values of these options change nothing."""
    others = {name: other_value(name, BASE) for name in names}
    tiny_run(tmp_path / "base", BASE, without)
    tiny_run(tmp_path / "run", BASE, without, others)
    assert written(tmp_path / "run") == written(tmp_path / "base")


UNMET = {
    "discriminator": ({"discriminator": "none"}, "--discriminator NAME"),
    "perceptual": ({"perceptual": "none"}, "--perceptual NAME"),
    "adversarial_weight": ({"adversarial_weight": 0.0}, "--adversarial-weight above 0"),
    "adversarial_adaptive": ({"adversarial_adaptive": False}, "--adversarial-adaptive"),
    "lecam_weight": ({"lecam_weight": 0.0}, "--lecam-weight above 0"),
    "r1_weight": ({"r1_weight": 0.0}, "--r1-weight above 0"),
    "reconstruction_weight": ({"reconstruction_weight": 0.0}, "--reconstruction-weight above 0"),
    "from_": ({}, "--from"),
    "tracker": ({}, "--tracker"),
}


@pytest.mark.parametrize(
    ("name", "need"),
    [pytest.param(s.path[0], need, id=f"{s.key} {need}") for s in NEEDY for need in s.info.needs],
)
def test_a_flag_without_effect_is_refused(name: str, need: str) -> None:
    without, told = UNMET[need]
    settings = layered(None, BASE, without)
    value = settings.get(name, 1)
    if any(spec.path == (name,) and spec.info.kind for spec in NEEDY):
        value = {"name": value} if isinstance(value, str) else value
    with pytest.raises(Exception, match=rf"with.* {told}, --{name.replace('_', '-')} would do no"):
        check_not_idle(settings, {name: value})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--r1-every", "2"], "without --discriminator NAME, --r1-every"),
        (
            ["--discriminator-optimizer.betas", "0.5,0.9"],
            "without --discriminator NAME, --discriminator-optimizer.betas",
        ),
    ],
)
def test_a_command_line_without_effect_is_a_usage_error(
    flags: list[str], told: str, tmp_path: Path
) -> None:
    code, text = invoke("train", *flags, "--steps", "0", "--out", tmp_path / "run")
    assert code == 2
    assert f"{told} would do nothing" in " ".join(text.split())
    assert not (tmp_path / "run").exists()


def test_a_config_may_list_options_without_effect(tmp_path: Path) -> None:
    """A config lists every option, including those without effect."""
    tiny_run(tmp_path / "one", {"steps": 0})
    config = tmp_path / "one" / "config.toml"
    code, text = invoke("train", "--config", config, "--out", tmp_path / "two")
    assert code == 0, text


def test_every_option_of_a_run_is_tested() -> None:
    assert {*OTHER, *WITH, *ELSEWHERE} <= {*NAMES}
    assert {name for name in HOW if "." not in name} <= {*NAMES}
    assert {need for spec in NEEDY for need in spec.info.needs} == {*UNMET}
