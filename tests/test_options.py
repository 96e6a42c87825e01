"""Options: one typed field defines the flag, the TOML key, the JSON, the help and the check."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import tomli_w
from genkit_cli.explain import explain_choice
from genkit_cli.flags import Flags, chosen_flags, idle, told_needs

from genkit import Part, option
from genkit.errors import MissingComponent, OptionError, PluginError
from genkit.plugin.conditions import Need
from genkit.plugin.options import check_config
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.settings import merge, resolve, settings_of, specs


@dataclass(frozen=True)
class Sample:
    number: int = option(1, "a number", minimum=0, maximum=9)
    share: float = option(0.5, "a share")
    on: bool = option(True, "a switch")
    text: str = option("a", "a text")
    kind: Literal["left", "right"] = option("left", "a choice")
    sizes: tuple[int, ...] = option((1, 2), "some sizes", minimum=1)


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("number", "3", 3),
        ("share", "1e-3", 1e-3),
        ("share", 1, 1.0),
        ("on", "false", False),
        ("kind", "right", "right"),
        ("sizes", "4,5,6", (4, 5, 6)),
        ("sizes", [7], (7,)),
        ("sizes", 7, (7,)),
    ],
)
def test_values_become_the_fields_type(key: str, value: Any, parsed: Any) -> None:
    found = getattr(resolve(Sample, {key: value}), key)
    assert found == parsed
    assert type(found) is type(parsed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("number", "x", "'number' is 'x'; it must be a whole number"),
        ("number", 1.5, "must be a whole number"),
        ("number", True, "must be a whole number"),
        ("number", 10, "must be at most 9"),
        ("number", -1, "must be at least 0"),
        ("share", "nan", "must be a number"),
        ("on", "perhaps", "must be true or false"),
        ("text", 3, "must be text"),
        ("kind", "lefd", "it can be left, right. Did you mean 'left'"),
        ("sizes", "4,x", "must be a whole number"),
        ("sizes", [0], "must be at least 1"),
        ("nummber", 1, "There is no option 'nummber'. Did you mean 'number'"),
    ],
)
def test_invalid_values_have_clear_errors(key: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("?", "[?]")):
        resolve(Sample, {key: value})


def test_settings_round_trip_through_toml() -> None:
    run = resolve_run(
        layered(
            None,
            {
                "encoder": {"attention": "pixel", "width": [8, 9]},
                "lr": 0.5,
                "discriminator": "patchgan",
            },
        )
    )
    assert resolve_run(tomllib.loads(tomli_w.dumps(settings_of(run)))) == run


def test_later_layers_win_and_parts_keep_their_options() -> None:
    run = resolve_run(
        layered(None, {"encoder": {"width": [8], "levels": 3}}, {"encoder": {"levels": 1}})
    )
    assert run.encoder.options.width == (8,)
    assert run.encoder.options.levels == 1


def test_another_component_drops_the_options_of_the_old_one() -> None:
    merged = merge(
        TokenizerRun, {"quantizer": {"name": "vq", "codebook_size": 7}}, {"quantizer": "fsq"}
    )
    assert merged["quantizer"] == {"name": "fsq"}


def test_parts_of_parts() -> None:
    run = resolve_run(layered(None, {"encoder": {"attention": {"name": "pixel", "dim": 5}}}))
    attention = run.encoder.options.attention
    assert isinstance(attention, Part)
    assert (attention.name, attention.options.dim) == ("pixel", 5)


def test_a_misspelt_component_is_suggested() -> None:
    with pytest.raises(
        MissingComponent, match=r"no encoder 'arem'\. Did you mean 'aren'.*Installed: aren"
    ):
        resolve_run(layered(None, {"encoder": "arem"}))


def test_an_optional_part() -> None:
    run = resolve_run(layered(None))
    assert not run.discriminator
    assert run.encoder.options.attention
    with pytest.raises(OptionError, match=r"'discriminator.norm' has no effect"):
        resolve_run(layered(None, {"discriminator": {"name": "none", "norm": "batch"}}))


def test_local_options_stay_out_of_model_files() -> None:
    run = resolve_run(layered(None, {"data": {"name": "folder", "location": "/secret"}}))
    assert settings_of(run)["data"]["location"] == "/secret"
    assert "location" not in settings_of(run, local=False)["data"]


def test_short_flags_where_unambiguous() -> None:
    flags = Flags(specs(TokenizerRun, layered(None, {"encoder": {"attention": "pixel"}})))
    assert flags.by_name["levels"].path == ("encoder", "levels")
    assert flags.by_name["attention"].path == ("encoder", "attention")
    assert (
        flags.by_name["dim"].path
        == flags.by_name["attention.dim"].path
        == ("encoder", "attention", "dim")
    )
    assert "width" not in flags.by_name
    ambiguous = explain_choice("--width", flags, TokenizerRun, [])
    assert "--encoder.width or --fusion.width or --decoder.width" in ambiguous


def test_flags_appear_with_their_component() -> None:
    assert "dim" not in chosen_flags([], [], None, []).by_name
    assert "dim" in chosen_flags(["--attention=pixel"], [], None, []).by_name
    assert "bins" in chosen_flags(["--quantizer", "fsq"], [], None, []).by_name
    assert "codebook-size" not in chosen_flags(["--quantizer", "fsq"], [], None, []).by_name


def test_every_option_has_a_help_text() -> None:
    for spec in specs(
        TokenizerRun,
        layered(None, {"encoder": {"attention": "pixel"}, "discriminator": "patchgan"}),
    ):
        assert spec.info.help, spec.key
        assert not spec.info.help.endswith("."), spec.key


def test_run_options_are_all_in_the_help_of_the_run() -> None:
    listed = {spec.path[0] for spec in specs(TokenizerRun, layered(None))}
    assert listed == {field.name for field in dataclasses.fields(TokenizerRun)}


def test_a_cure_is_the_flag_that_enables_it() -> None:
    def cures(**quantizer: Any) -> list[str]:
        settings = layered(None, {"quantizer": {"name": "vq", **quantizer}})
        return [spec.cure for spec in specs(TokenizerRun, settings) if spec.cure]

    assert cures() == []
    assert cures(kmeans_start=False) == ["--quantizer.kmeans-start"]
    assert cures(revive=0.0) == ["--quantizer.revive 50"]
    assert cures(revive=7.0) == []


@dataclass(frozen=True)
class Needy:
    on: bool = option(False, "a switch")
    count: int = option(0, "a number")
    how: Literal["left", "right"] = option("left", "a choice")
    much: float = option(1.0, "how much", needs=("on", "count", "how=right"))


@pytest.mark.parametrize(
    ("need", "value", "met"),
    [
        ("x", "", False),
        ("x", "none", False),
        ("x", 0.0, False),
        ("x", "a", True),
        ("x=a", "a", True),
        ("x=a", "b", False),
        ("x=true", True, True),
    ],
)
def test_a_need_is_met_or_not(need: str, value: Any, met: bool) -> None:
    assert Need.parse(need).met(value) == met


@pytest.mark.parametrize(
    ("settings", "lack"),
    [
        ({}, "without --on"),
        ({"on": True}, "without --count above 0"),
        ({"on": True, "count": "3"}, "without --how right"),
        ({"on": True, "count": 3, "how": "right"}, ""),
    ],
)
def test_an_option_with_an_unmet_need_has_no_effect(settings: dict[str, Any], lack: str) -> None:
    told = idle(list(specs(Needy, settings)), {"much": 2.0})
    assert told == ([f"{lack}, --much would do nothing"] if lack else [])
    assert idle(list(specs(Needy, settings)), {"on": True}) == []


def test_the_options_of_a_part_inherit_its_needs() -> None:
    tree = list(specs(TokenizerRun, layered(None)))
    given = {"discriminator_optimizer": "sgd", "fusion": {"width": 4}}
    assert idle(tree, given) == [
        "without --discriminator NAME, --discriminator-optimizer would do nothing"
    ]


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("other", "'bad' needs 'other', but no other option is called 'other'"),
        ("bad", "no other option is called 'bad'"),
        ("is it", "the need 'is it' must read NAME or NAME=VALUE"),
        ("!fine", "must read NAME"),
        ("fine>2", "must read NAME"),
    ],
)
def test_an_unknown_need_is_found_when_a_plugin_loads(needs: str, message: str) -> None:
    fields = [
        ("fine", int, option(1, "a number")),
        ("bad", int, option(1, "a number", needs=needs)),
    ]
    with pytest.raises(PluginError, match=message):
        check_config(dataclasses.make_dataclass("Bad", fields, frozen=True))
    check_config(Needy)


def test_the_help_says_when_an_option_matters() -> None:
    tree = {spec.path: spec for spec in specs(Needy, {})}
    told = "with --on and with --count above 0 and with --how right"
    assert told_needs(tree["much",], tree) == told
    assert told_needs(tree["on",], tree) == ""


def test_a_nested_part_needs_no_name() -> None:
    """If the component around it was replaced, its default applies."""
    judge = {"name": "multiscale", "each": {"dropout": 0.5}}
    run = resolve_run(layered(None, {"discriminator": judge}))
    each = run.discriminator.options.each
    assert each.name == "patchgan"
    assert each.options.dropout == 0.5
