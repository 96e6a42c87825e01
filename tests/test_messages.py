"""What commands print with -q and -v, and what the library logs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, flags, genkit_here, invoke
from genkit_cli.main import COMMANDS
from genkit_cli.messages import level_of

from genkit.plugin.registry import registry


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet_or_verbose(command: str) -> None:
    text = invoke(command, "--help")[1]
    assert "-q, --quiet" in text
    assert "-v, --verbose" in text


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_quiet_run_prints_its_result_alone(place: str, tmp_path: Path) -> None:
    train = ["train", *flags({**TINY, "steps": 4}), "--out", str(tmp_path / "run")]
    done = genkit_here(*(["-q", *train] if place == "before" else [*train, "--quiet"]))
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("Held-out images: PSNR")
    assert second.startswith("The model is ")


def test_a_quiet_command_prints_no_notes_and_all_errors(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    usual = genkit_here("reconstruct", trained, folder, "--out", tmp_path / "a")
    assert "is left out" in usual.stderr
    quiet = genkit_here("reconstruct", "-q", trained, folder, "--out", tmp_path / "b")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == usual.stdout.replace(f"{tmp_path / 'a'}", f"{tmp_path / 'b'}")
    failed = genkit_here("inspect", "-q", tmp_path / "nothing")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: ")


def test_a_verbose_run_says_what_it_reads_and_writes_and_when(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text("seed = 3\n")
    settings = flags({**TINY, "steps": 4})
    out = tmp_path / "run"
    done = genkit_here("train", "-v", "--config", config, *settings, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("[") and " s] genkit." in line for line in lines)
    assert any(f"options from '{config}'" in line for line in lines)
    assert any("validation at step 4" in line for line in lines)
    assert any(f"wrote '{out / 'model.safetensors'}'" in line for line in lines)
    assert "step 4/4" in done.stdout
    measured = genkit_here("evaluate", "--verbose", out, "--images", "4")
    assert f"the tokenizer '{out / 'model.safetensors'}'" in measured.stderr


def test_quiet_and_verbose_exclude_each_other() -> None:
    code, text = invoke("components", "-q", "--verbose")
    assert code == 2
    assert "--quiet and --verbose exclude each other." in text
    assert level_of(["train", "--", "-q"]) == logging.INFO


def test_a_plugin_that_is_left_out_is_a_warning_that_services_can_route(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GENKIT_PLUGINS", "nosuch")
    registry.cache_clear()
    try:
        done = genkit_here("components")
        quiet = genkit_here("-q", "components")
    finally:
        monkeypatch.undo()
        registry.cache_clear()
    assert done.stderr.startswith("genkit: GENKIT_PLUGINS names 'nosuch', but no such plugin is")
    assert quiet.stderr == ""
    assert [record.name for record in caplog.records] == ["genkit.plugin.registry"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_messages_that_cannot_be_written_end_no_command() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "genkit_cli", "components", "schedule"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            env={**os.environ, "GENKIT_PLUGINS": "optimizers,nosuch"},
            check=False,
        )
    assert done.returncode == 0
    assert "cosine" in done.stdout


def test_a_command_leaves_logging_as_it_was(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("genkit", "genkit_cli")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    for args in (["-v", "components"], ["-q", "inspect", "nothing"], ["-q", "trian"]):
        invoke(*args)
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before
