"""Consoles without Unicode, closed pipes and full disks."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, flags, genkit_command, genkit_here, invoke, tiny_run
from genkit_cli.progress import Progress
from genkit_cli.terminal import prepare, typed

import genkit
from genkit.run.options import layered, resolve_run
from genkit.run.state import load_state
from genkit.training.tokenizer import _warnings

EVERY_HELP = """
import sys
from genkit_cli.main import COMMANDS, main
for args in ([], *([command, "--help"] for command in COMMANDS), ["plugins"], ["components"]):
    sys.argv = ["genkit", *args]
    try:
        main()
    except SystemExit as error:
        assert error.code in (0, 2, None), args
"""


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_every_command_prints_on_any_console(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"") or b"Usage" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Components" in done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_training_prints_on_any_console(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a container that reports a console of zero columns."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, write_through=True))
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    prepare()
    assert "COLUMNS" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    with Progress() as progress:
        tiny_run(tmp_path / "naïve→", {"steps": 2}, reporter=progress)  # type: ignore[arg-type]
    text = printed.getvalue().decode(encoding)
    assert "-> " in text
    assert "step 2/2" in text
    assert "Next: genkit evaluate" in text


@pytest.mark.skipif(sys.platform == "win32", reason="pipes that are closed end otherwise there")
def test_training_continues_if_its_output_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with Progress() as progress:
            tiny_run(tmp_path / "run", {"steps": 4}, reporter=progress)  # type: ignore[arg-type]
    assert load_state(tmp_path / "run" / "checkpoints")[0] == 4
    told = capfd.readouterr().err
    assert told == "The output cannot be written (Broken pipe); training continues without it.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_other_commands_report_lost_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "genkit_cli", "components"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: the output cannot be written: No space left on device\n"


def test_a_path_is_printed_as_typed() -> None:
    assert [typed(path) for path in ("run", "my run", "-run", "a'b")] == [
        "run",
        "'my run'",
        "./-run",
        "'a'\"'\"'b'",
    ]


def test_a_long_option_with_one_dash_is_reported() -> None:
    for command in (["train"], ["encode", "a", "b"]):
        code, text = invoke(*command, "-out", "x")
        assert code == 2
        assert "There is no option '-out': write --out." in text


def test_home_directories_are_expanded_after_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "own.toml").write_text("steps = 77\n")
    assert "[77]" in invoke("train", "--config=~/own.toml", "--help")[1]
    for args in (["evaluate", "~/none"], ["replay", "~/none"], ["train", "--data=~/none"]):
        assert str(tmp_path / "none") in invoke(*args)[1]


def test_a_failure_shows_its_traceback_on_request(tmp_path: Path) -> None:
    for args in (["evaluate", "none", "--traceback"], ["--traceback", "train", "--data=none"]):
        done = genkit_command(*args, cwd=tmp_path)
        assert "Traceback (most recent call last)" in done.stderr
        assert ", in " in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: ")
    assert "--traceback" in invoke("--help")[1]
    assert all("--traceback" in invoke(name, "--help")[1] for name in ("train", "inspect"))


def test_values_are_accepted_as_help_shows_them() -> None:
    for width in ("16,32", "[16,32]", " [16, 32]"):
        run = resolve_run(layered(None, {"encoder": {"width": width}, "steps": "1e3"}))
        assert (run.steps, run.encoder.options.width) == (1000, (16, 32))
    for steps in ("1.5", "1e999", "nan"):
        assert "must be a whole number" in invoke("train", "--steps", steps)[1]


def test_a_config_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes("steps = 77\r\nseed = 3\r\n".encode("utf-8-sig"))
    assert "[77]" in invoke("train", "--config", file, "--help")[1]
    file.write_bytes("steps = 77\n".encode("utf-16"))
    assert "is UTF-16 text: save it as UTF-8" in invoke("train", "--config", file)[1]


def test_a_run_is_named_by_its_folder(photographs: Path, tmp_path: Path) -> None:
    settings = {**TINY, "steps": 1, "data": {"name": "folder", "location": str(photographs)}}
    tiny_run(tmp_path / "run", settings)
    assert "held-out images of photographs at" in invoke("evaluate", tmp_path / "run")[1]


def test_a_line_names_held_out_figures_after_a_validation_alone(tmp_path: Path) -> None:
    done = genkit_here("train", *flags({**TINY, "steps": 4}), "--out", tmp_path / "run")
    first, second = (line for line in done.stdout.splitlines() if line.startswith("step "))
    assert "held-out" not in first
    assert re.search(r"reconstruction 0\.\d{4} .* \| held-out PSNR \d+\.\d{3} dB", second)


def test_a_discriminator_that_never_starts_is_reported(tmp_path: Path) -> None:
    late = {"discriminator": "patchgan", "discriminator_start": 8}
    done = genkit_here("train", *flags({**TINY, **late}), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Warning: the discriminator starts at step 8" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"discriminator_start": 8}, "the discriminator starts at step 8, which this run does not"),
        (
            {"discriminator_start": 3, "discriminator_head_start": 5},
            "verdict counts from step 8 on, which this run does not reach: give a lower "
            "--discriminator-head-start or --discriminator-start",
        ),
        ({}, "verdict counts from step 100 on, .* give a lower --discriminator-head-start$"),
        ({"discriminator_start": 3, "discriminator_head_start": 4}, ""),
        ({"adversarial_weight": 0.0}, ""),
        ({"steps": 0}, ""),
    ],
)
def test_a_verdict_that_never_counts_is_reported(changes: dict[str, Any], warning: str) -> None:
    found = _warnings(resolve_run(layered(None, TINY, {"discriminator": "patchgan"}, changes)))
    assert len(found) == bool(warning)
    assert all(re.search(warning, each) for each in found)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_every_command_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genkit, "inspect", interrupted)
    done = genkit_here("inspect", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "Interrupted.")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no terminals of this kind")
def test_ctrl_c_in_a_terminal_ends_by_the_signal_itself() -> None:
    """A shell stops its loop after a program that the signal itself ended."""
    code = (
        "import genkit_cli.main as m\n"
        "def stopped(**_): raise KeyboardInterrupt\n"
        "m.cli.main = stopped\n"
        "m.main()"
    )
    command = [sys.executable, "-c", code]
    terminal, inner = os.openpty()
    plain = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    typed = subprocess.run(command, stdin=inner, capture_output=True, check=False)
    os.close(terminal)
    os.close(inner)
    assert (plain.returncode, plain.stderr) == (130, b"Interrupted.\n")
    assert (typed.returncode, typed.stderr) == (-signal.SIGINT, b"Interrupted.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 1), ("SIGUSR1", 1)])
def test_a_run_that_a_signal_stopped_has_its_exit_code(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(self: Progress, step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(Progress, "advance", send)
    done = genkit_here("train", *flags(TINY), "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (code, "")
    assert "Interrupted at step 3; everything is saved." in done.stdout
