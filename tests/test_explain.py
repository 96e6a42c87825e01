"""Messages on flags that a command does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import pytest
from conftest import invoke
from genkit_cli.main import COMMANDS

from genkit import Component, Part, option, part
from genkit.errors import OptionError, PluginError
from genkit.plugin.names import nearest, other_names
from genkit.plugin.options import check_config
from genkit.plugin.registry import registry
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.run.prior import PriorRun


@dataclasses.dataclass(frozen=True)
class Inner:
    grit: int = option(1, "a number")


@dataclasses.dataclass(frozen=True)
class Outer:
    other_names: ClassVar[Mapping[str, str]] = {
        "sand": "grit",
        "coarse": "grit=9",
        "mud": "grit: mud is counted in --quantizer.grit",
    }

    grit: int = option(1, "a number")
    inner: Part = part("inside", "deep", "a part")


@pytest.fixture
def stones() -> object:
    """Quantizers `stone` and `rock`, each with a part of its own kind."""
    known = registry()._components
    before = dict(known)
    for kind, name, config in (
        ("quantizer", "stone", Outer),
        ("quantizer", "rock", Outer),
        ("inside", "deep", Inner),
        ("inside", "shallow", Inner),
    ):
        known[kind, name] = Component(kind, name, "none:none", config)
    yield
    known.clear()
    known.update(before)


def said(*args: str) -> str:
    """The message of `genkit train ARGS`, which are wrong."""
    code, text = invoke("train", *args)
    assert code == 2
    return text.strip().splitlines()[-1].removeprefix("Error: ")


BELONGS = [
    ("--dim 8", "--dim belongs to attention pixel: add --attention pixel."),
    ("--bins 5", "--bins belongs to quantizer fsq: add --quantizer fsq."),
    (
        "--quantizer fsq --codebook-size 5",
        "--codebook-size belongs to the quantizers vq, categorical, residual-vq and 4 more, and "
        "the quantizer is fsq.",
    ),
    (
        "--perceptual.weights x",
        "--perceptual.weights belongs to the perceptuals timm and lpips: add --perceptual timm or "
        "--perceptual lpips.",
    ),
    (
        "--encoder vqgan --attention.dim 8",
        "--attention.dim belongs to attention pixel of encoder aren, and the encoder is vqgan.",
    ),
    (
        "--each.dropout 0.1",
        "--each.dropout belongs to discriminator patchgan of discriminator multiscale: add "
        "--discriminator multiscale.",
    ),
    (
        "--discriminator-optimizer.weight-decay 1 --discriminator-optimizer.momentum 0 "
        "--discriminator-optimizer adam",
        "--discriminator-optimizer.momentum belongs to optimizer muon, and the optimizer is adam.",
    ),
    ("--place-width 8", "--place-width is an option of genkit train-prior."),
]


@pytest.mark.parametrize(("line", "message"), BELONGS)
def test_an_option_of_another_component_names_its_owner(line: str, message: str) -> None:
    assert said(*line.split()) == message


def test_options_of_parts_within_parts_name_every_choice(stones: object) -> None:
    assert said("--grit", "3") == (
        "--grit belongs to the quantizers rock and stone: add --quantizer rock or --quantizer "
        "stone."
    )
    assert said("--inner.grit", "3") == (
        "--inner.grit belongs to the insides deep of quantizer rock and deep of quantizer stone: "
        "add --quantizer rock or --quantizer stone."
    )
    assert said("--sand", "3").startswith(
        "There is no option '--sand': --grit belongs to the quantizers rock and stone"
    )
    assert said("--quantizer", "rock", "--mud", "3") == (
        "There is no option '--mud': mud is counted in --quantizer.grit."
    )
    coarse = said("--quantizer", "rock", "--quantizer.coarse")
    assert coarse == "There is no option '--quantizer.coarse': write --quantizer.grit 9."


OTHER_NAMES = [
    ("learning-rate", "write --lr"),
    ("learning_rate=1", "write --lr"),
    ("epochs", "training is counted in --steps of --batch-size images"),
    ("max-steps", "write --steps"),
    ("gpu", "write --device cuda"),
    ("cuda", "write --device cuda"),
    (
        "gpus",
        "with --processes N training uses N GPUs, with --device cuda:0 one",
    ),
    ("output-dir", "write --out"),
    ("output", "write --out"),
    ("lr-scheduler", "write --schedule"),
    ("num-workers", "write --workers"),
    ("train-batch-size", "write --batch-size"),
    ("fp16", "write --mixed-precision fp16"),
    ("bf16", "write --mixed-precision bf16"),
    ("gradient-accumulation-steps", "write --accumulate"),
    ("image-size", "write --resolution"),
    ("data-dir", "write --data"),
    ("num-embeddings", "write --codebook-size"),
    ("embedding-dim", "write --latent-channels"),
    ("commitment-cost", "write --commitment-weight"),
    ("resume-from-checkpoint", "write --resume"),
    ("wandb", "write --tracker wandb"),
    ("report-to", "write --tracker"),
    ("wandb-project", "write --project"),
    ("wandb-run-name", "write --run-name"),
    ("wandb-entity", "the environment variable WANDB_ENTITY names it"),
    ("lpips", "write --perceptual lpips"),
    ("adamw", "write --optimizer adamw"),
]


@pytest.mark.parametrize(("typed", "means"), OTHER_NAMES)
def test_the_usual_names_of_other_tools_lead_to_ours(typed: str, means: str) -> None:
    flag = f"--{typed}".replace("_", "-").partition("=")[0]
    assert said(f"--{typed}", "1") == f"There is no option '{flag}': {means}."


@pytest.mark.parametrize(
    ("settings", "means"),
    [
        ({"learning_rate": 1.0}, "'learning-rate': write lr"),
        ({"fp16": True}, "'fp16': write mixed_precision = 'fp16'"),
        ({"epochs": 3}, "'epochs': training is counted in --steps of --batch-size images"),
        ({"quantizer": {"n_embed": 3}}, "'quantizer.n-embed': write codebook_size"),
        ({"checkpoint": "x"}, "'checkpoint': write from_"),
    ],
)
def test_settings_from_python_and_files_lead_to_ours_too(
    settings: dict[str, object], means: str
) -> None:
    with pytest.raises(OptionError) as failure:
        resolve_run(layered(None, settings))
    assert str(failure.value) == f"There is no option {means}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_an_unknown_flag(command: str) -> None:
    code, text = invoke(command, "--hepl")
    assert (code, "There is no option '--hepl'. Did you mean '--help'?" in text) == (2, True)


def test_other_commands_know_the_usual_names_too() -> None:
    assert "'--output': write --out." in invoke("encode", "a", "b", "--output", "c")[1]
    assert "'--gpu': write --device cuda." in invoke("evaluate", "a", "--gpu")[1]
    assert "'--lpips': write --metric lpips." in invoke("evaluate", "a", "--lpips")[1]
    assert "'--num-samples': write --number." in invoke("sample", "a", "--num-samples", "3")[1]


@pytest.mark.parametrize(
    ("name", "known", "suggested"),
    [
        ("--epochs", "--pose", ""),
        ("--gpu", "--pose", ""),
        ("--device", "--revive", ""),
        ("--quiet", "--size", ""),
        ("VQ", "vq", "vq"),
        ("--widht", "--width", "--width"),
        ("residual_vq", "residual-vq", "residual-vq"),
    ],
)
def test_suggestions_need_more_than_a_few_common_letters(
    name: str, known: str, suggested: str
) -> None:
    assert nearest(name, [known]) == (f" Did you mean '{suggested}'?" if suggested else "")


def test_a_component_in_capital_letters_is_suggested() -> None:
    code, text = invoke("train", "--quantizer", "VQ")
    assert (code, "Did you mean 'vq'?" in text) == (2, True)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--encoder.attention pixel --attention none", "--encoder.attention and --attention"),
        (
            "--codebook-size=4 --quantizer.codebook-size=4",
            "--codebook-size and --quantizer.",
        ),
        ("--encoder.no-mix --mix --dim 3", "--encoder.no-mix and --mix"),
    ],
)
def test_an_option_under_two_names_is_refused(line: str, names: str) -> None:
    code, text = invoke("train", *line.split())
    assert code == 2
    assert names in text
    assert "are one option: give it once." in text


def test_the_last_of_the_same_flag_counts() -> None:
    assert "'steps' is 'x'" in said("--steps", "3", "--mix", "--no-mix", "--steps", "x")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"x": "nothing"}, "the other name 'x' stands for 'nothing', but no option is called so"),
        ({"x": "a b c"}, "it must read OPTION, OPTION=VALUE or 'OPTION: SENTENCE'"),
    ],
)
def test_wrong_other_names_are_found_when_a_plugin_loads(
    names: dict[str, str], message: str
) -> None:
    wrong = dataclasses.make_dataclass(
        "Wrong", [("a", int, option(1, "a number"))], frozen=True, namespace={"other_names": names}
    )
    with pytest.raises(PluginError, match=message):
        check_config(wrong)


@pytest.mark.parametrize("kind", [TokenizerRun, PriorRun])
def test_other_names_of_a_run_stand_for_options_and_take_none_away(kind: type) -> None:
    check_config(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    assert not fields & {other.name for other in other_names(kind)}
