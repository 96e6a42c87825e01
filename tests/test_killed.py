"""A run killed at any moment and resumed ends with the same bits as an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, comparable, flags, genkit_command, genkit_here, same
from killed import DONE, killed
from safetensors.torch import load_file

from genkit.checkpoint.header import read_header

LONG = {
    **TINY,
    "steps": 60,
    "log_every": 3,
    "validate_every": 10,
    "checkpoint_every": 2,
    "keep": 2,
    "ema": 0.9,
    "quantizer": {"codebook_size": 16, "revive": 1.0},
}
ADVERSARIAL = [
    *("--discriminator", "patchgan", "--discriminator.norm", "batch"),
    *flags({"discriminator_start": 5, "discriminator_head_start": 3}),
    *flags({"lecam_weight": 0.1, "accumulate": 2, "workers": 2}),
]
GRADIENT = [
    *("--quantizer.update", "gradient", "--optimizer", "adamw", "--mixed-precision", "bf16"),
    *("--discriminator", "stylegan", "--r1-weight", "0.1", "--r1-every", "2", "--workers", "2"),
    *("--discriminator-head-start", "3"),
]


def files(out: Path) -> dict[str, bytes]:
    """Every file, except the ones with times, tensors or the options of the last start."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.suffix == ".png"
    }


def check_same(out: Path, whole: Path) -> None:
    names = [sorted(str(f.relative_to(each)) for f in each.rglob("*")) for each in (out, whole)]
    assert names[0] == names[1]
    assert comparable(out) == comparable(whole)
    assert files(out) == files(whole)
    model = "model.safetensors"
    assert read_header(out / model) == read_header(whole / model)
    tensors = [file.relative_to(whole) for file in whole.rglob("*.safetensors")]
    assert len(tensors) == 3
    for file in tensors:
        assert same(load_file(out / file), load_file(whole / file))
    assert (out / "config.toml").read_text() == (whole / "config.toml").read_text()


def campaign(more: list[str], tmp_path: Path, kills: int, rounds: int, processes: int) -> int:
    settings = [*flags(LONG), *more]
    # A single process may as well be this one, which saves the start of another.
    both = ["--processes", str(processes)] if processes > 1 else []
    genkit = genkit_command if processes > 1 else genkit_here
    whole = tmp_path / "whole"
    done = genkit("train", *settings, *both, "--out", whole)
    assert done.returncode == 0, done.stderr
    struck = 0
    for number in range(rounds):
        out = tmp_path / f"killed-{number}"
        struck += killed(settings, out, kills, 100 * processes + number, processes)
        chosen = ["--resume"] if (out / "config.toml").is_file() else settings
        done = genkit("train", *chosen, *both, "--out", out)
        assert done.returncode == 0 or DONE in done.stderr, done.stderr
        check_same(out, whole)
    return struck


@pytest.mark.slow
def test_a_kill_while_a_file_is_written(tmp_path: Path) -> None:
    """With this seed the kill comes at a file, so it does not depend on the machine's speed."""
    few = [*ADVERSARIAL, "--steps", "20"]
    assert campaign(few, tmp_path, kills=1, rounds=1, processes=1) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "processes"),
    [(["--steps", "200"], 1), (ADVERSARIAL, 1), (GRADIENT, 1), (ADVERSARIAL, 2)],
)
def test_fifty_kills(more: list[Any], processes: int, tmp_path: Path) -> None:
    assert campaign(more, tmp_path, kills=7, rounds=2, processes=processes) >= 13
