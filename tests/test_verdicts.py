"""Alarms of adversarial training: which side wins, from synthetic scores and in tiny runs."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import InterruptAt, comparable, rows, same, tiny_run, weights
from genkit_cli.progress import Progress
from torch.multiprocessing.spawn import spawn

from genkit.run.options import layered, resolve_run
from genkit.testing.tools import met
from genkit.training import verdicts
from genkit.training.modules import load_module_state, module_state
from genkit.training.verdicts import Verdicts

WINS, LOSES = "the discriminator wins", "the tokenizer wins"


def fresh(**settings: Any) -> Verdicts:
    base = {"discriminator": "patchgan", "discriminator_ramp": 0}
    return Verdicts(resolve_run(layered(None, base, settings)))


def scored(each: Verdicts, real: float, made: float, steps: int) -> list[str]:
    """The kinds of the alarms after so many steps with such scores."""
    count = each.run.accumulate
    for number in range(steps * count):
        last = (number + 1) % count == 0
        each.add(torch.full((2, 1, 3, 3), real), torch.full((2, 1, 3, 3), made), last)
    return [alarm["kind"] for alarm in each.alarms()]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("loss", "real", "made", "kinds"),
    [
        ("hinge", 1.2, -1.2, [WINS]),
        ("non-saturating", 1.2, -1.2, [WINS]),
        ("hinge", 3.0, -0.9, []),
        ("hinge", 0.9, -3.0, []),
        ("hinge", 0.3, -0.2, []),
        ("hinge", 0.52, 0.5, [LOSES]),
        ("hinge", -0.2, 0.2, [LOSES]),
        ("non-saturating", 0.01, 0.0, [LOSES]),
        # A probability of 0.95 is a logit of 2.94.
        ("bce", 3.0, -3.0, [WINS]),
        ("bce", 2.9, -2.9, []),
        ("bce", 1.0, -1.0, []),
        ("bce", 0.03, 0.0, [LOSES]),
    ],
)
def test_each_side_can_win(
    loss: str, real: float, made: float, kinds: list[str], accumulate: int
) -> None:
    each = fresh(adversarial_loss=loss, accumulate=accumulate)
    assert each.alarms() == []
    assert scored(each, real, made, 99) == []
    assert scored(each, real, made, 101) == kinds
    assert int(each.means.steps) == 200


def test_alarms_wait_for_enough_steps() -> None:
    each = fresh(discriminator_ramp=50)
    assert scored(each, 2.0, -2.0, 149) == []
    assert scored(each, 2.0, -2.0, 1) == [WINS]
    each = fresh(discriminator_ramp=500)
    assert scored(each, 0.0, 0.0, 199) == []
    assert scored(each, 0.0, 0.0, 1) == [LOSES]


def test_an_episode_begins_and_ends_at_different_scores() -> None:
    each = fresh()
    assert scored(each, 0.9, -0.9, 300) == []
    assert scored(each, 1.1, -1.1, 300) == [WINS]
    assert scored(each, 0.9, -0.9, 1000) == [WINS]
    assert scored(each, 0.7, -0.7, 1000) == []
    assert scored(each, 0.9, -0.9, 1000) == []
    assert scored(each, 0.04, 0.0, 1000) == [LOSES]
    assert scored(each, 0.07, 0.0, 1000) == [LOSES]
    assert scored(each, 0.2, 0.0, 1000) == []
    assert scored(each, 0.07, 0.0, 1000) == []


def test_restored_state_gives_the_same_alarms() -> None:
    each, other = fresh(), fresh()
    scored(each, 1.1, -1.1, 300)
    load_module_state(other, {name: x.clone() for name, x in module_state(each).items()})
    # 0.9 alone would raise nothing.
    assert scored(each, 0.9, -0.9, 500) == scored(other, 0.9, -0.9, 500) == [WINS]
    assert each.alarms() == other.alarms()


def advice(real: float, made: float, **settings: Any) -> str:
    each = fresh(**settings)
    scored(each, real, made, 200)
    (alarm,) = each.alarms()
    message: str = alarm["message"]
    return message


def test_messages_name_scores_and_cures_that_are_off() -> None:
    text = advice(1.25, -1.5)
    assert "mean scores are 1.25 for real images and -1.50 for reconstructions" in text
    assert "a lower --discriminator-lr, --r1-weight 1, --lecam-weight 0.01, or a lower" in text
    regular = advice(1.25, -1.5, r1_weight=1.0, lecam_weight=0.1)
    assert regular.endswith("Try a lower --discriminator-lr, or a lower --adversarial-weight.")
    assert "--r1-weight" not in advice(2.0, -2.0, mixed_precision="fp16")
    text = advice(4.0, -4.0, adversarial_loss="bce")
    assert "mean probabilities are 0.98 for real images and 0.02 for reconstructions" in text
    text = advice(0.0, 0.0)
    assert "higher --discriminator-lr, a longer --discriminator-head-start, or a wider" in text
    assert "-weight" not in text
    text = advice(0.0, 0.0, r1_weight=1.0, lecam_weight=0.1)
    assert "a lower --r1-weight, a lower --lecam-weight" in text


def _half(rank: int, folder: str) -> None:
    with met(rank, folder, 2):
        each = fresh()
        # Each process alone would see no winner: one real images, the other reconstructions.
        kinds = scored(each, *((2.4, 0.0) if rank == 0 else (0.0, -2.4)), 200)
        torch.save((kinds, module_state(each)), Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_raise_the_same_alarms(tmp_path: Path) -> None:
    spawn(_half, (str(tmp_path),), nprocs=2)
    one = fresh()
    assert scored(one, 1.2, -1.2, 200) == [WINS]
    for rank in range(2):
        kinds, state = torch.load(tmp_path / f"{rank}.pt")
        assert kinds == [WINS]
        assert state.keys() == module_state(one).keys()
        assert all(torch.allclose(state[name], x) for name, x in module_state(one).items())


# A discriminator that does not learn.
BLIND: dict[str, Any] = {
    "discriminator": {"name": "patchgan", "width": [8, 8], "strides": [2, 2, 1], "norm": "none"},
    "discriminator_lr": 0.0,
    "discriminator_head_start": 1,
    "discriminator_ramp": 0,
    "accumulate": 2,
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_RECENT", 4)
    monkeypatch.setattr(verdicts, "_PATIENCE", 4)


@pytest.mark.usefixtures("soon")
def test_a_run_warns_once_of_a_discriminator_that_sees_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", write_through=True))
    with Progress() as progress:
        tiny_run(tmp_path / "run", BLIND, reporter=progress)  # type: ignore[arg-type]
    found = rows(tmp_path / "run")
    alarms = [[alarm["kind"] for alarm in row.get("alarms", [])] for row in found]
    assert alarms == [[], [], [LOSES], [LOSES]]
    text = printed.getvalue().decode()
    assert text.count("Warning: the tokenizer wins: the discriminator cannot distinguish") == 1
    assert text.count("Warning: the tokenizer wins at the end; see ") == 1
    (line,) = re.findall("^step 8/8 .*", text, re.MULTILINE)
    for name in ("adversarial_weight", "real_score", "made_score", "score_gap"):
        assert f"{name} {found[-1][name]:.3g} " in line


@pytest.mark.usefixtures("soon")
def test_a_resumed_run_has_the_same_alarms(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole", BLIND)
    tiny_run(tmp_path / "parts", BLIND, reporter=InterruptAt(5))
    tiny_run(tmp_path / "parts", BLIND, resume=True)
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
    assert "alarms" in rows(tmp_path / "parts")[-1]
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
