"""Progress of commands that do not train, in a terminal and elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import genkit_here
from genkit_cli.progress import Counting, busy

GOLDEN = Path(__file__).parent / "golden" / "taming-vq"


def tokens_of(trained: Path, photographs: Path, tmp_path: Path) -> Path:
    out = tmp_path / "tokens.safetensors"
    assert genkit_here("encode", trained, photographs, "--out", out).returncode == 0
    return out


@pytest.mark.parametrize("command", ["evaluate", "compare", "reconstruct", "tokens"])
def test_commands_that_take_long_show_how_far_they_are(
    command: str,
    trained: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import genkit

    other = tmp_path / "other.safetensors"
    tokenizer = genkit.load(trained)
    next(tokenizer.parameters()).data += 1
    genkit.save(tokenizer, other)
    data = "--data", photographs, "--batch-size", "4"
    args: list[Any] = {
        "evaluate": [trained, *data],
        "compare": [trained, other, *data],
        "reconstruct": [trained, photographs, "--out", tmp_path / "pictures"],
        "tokens": [tokens_of(trained, photographs, tmp_path)],
    }[command]
    quiet = genkit_here(command, *args)
    assert "12/12" not in quiet.stderr + quiet.stdout
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal.
    shown = genkit_here(command, *args)
    assert shown.returncode == 0, shown.stderr
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.stderr)
    assert "12/12" in plain
    assert "images" in plain
    silent = genkit_here(command, "-q", *args)
    assert silent.stderr == ""


def test_work_of_unknown_length_shows_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = GOLDEN / "checkpoint.safetensors"
    plain = genkit_here("import", weights, "--check", "none", "--out", tmp_path / "a")
    assert (plain.returncode, "Reading" in plain.stderr) == (0, False), plain.stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = genkit_here("import", weights, "--check", "none", "--out", tmp_path / "b")
    assert f"Reading {weights}"[:40] in shown.stderr
    silent = genkit_here("import", "-q", weights, "--check", "none", "--out", tmp_path / "c")
    assert "Reading" not in silent.stderr


def test_only_what_resumes_advises_to_repeat_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(resumes: bool) -> None:
        with Counting("images", resumes=resumes) as progress:
            progress(1, 3)
            raise KeyboardInterrupt

    for resumes in (True, False):
        with pytest.raises(KeyboardInterrupt):
            interrupted(resumes)
        told = "Run the same command again to continue." in capsys.readouterr().err
        assert told == resumes


def test_an_error_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), busy("Working"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""
