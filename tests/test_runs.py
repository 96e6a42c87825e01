"""`genkit runs`, and what a run directory says without torch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import genkit_here, invoke

from genkit.errors import GenkitError
from genkit.locking import locked
from genkit.run.overview import Overview, differing, options, runs_below


def refuse(path: Path, error: GenkitError) -> None:
    raise error


def test_what_a_run_is(runs: Path) -> None:
    one, prior = Overview.of(runs / "one"), Overview.of(runs / "prior")
    assert (one.kind, one.state, one.step, one.steps) == ("tokenizer", "done", 8, 8)
    assert (prior.kind, prior.state, prior.step) == ("prior", "done", 2)
    assert one.validation["psnr"] == one.rows[-1]["validation"]["psnr"]
    assert one.figures[0].startswith("PSNR ")
    with locked(runs / "one", GenkitError("held")):
        assert Overview.of(runs / "one").state == "running"
    with pytest.raises(GenkitError, match="is not a run directory"):
        Overview.of(runs)


def test_a_run_that_stopped_early(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*lines[:2], '{"step": 6, "l']))
    assert Overview.of(tmp_path / "run").state == "stopped"
    assert Overview.of(tmp_path / "run").step == 4
    (tmp_path / "run" / "failure").mkdir()
    assert Overview.of(tmp_path / "run").state == "failed"


def test_runs_are_found_at_any_depth(runs: Path) -> None:
    os.utime(runs / "one" / "metrics.jsonl", (2e9, 2e9))
    found = [run.path.relative_to(runs).as_posix() for run in runs_below(runs, refuse)]
    assert found[0] == "one"
    assert sorted(found) == ["deep/two", "one", "prior"]
    # Looking at a run does not make it the newest, which `--resume` would continue.
    before = [run.changed for run in runs_below(runs, refuse)]
    assert [run.state for run in runs_below(runs, refuse)] == ["done"] * 3
    (runs / "prior" / "report.html").touch()
    assert [run.changed for run in runs_below(runs, refuse)] == before


def test_a_damaged_run_does_not_hide_the_others(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "one")
    shutil.copytree(runs / "one", tmp_path / "two")
    (tmp_path / "two" / "config.toml").write_text("steps =")
    code, output = invoke("runs", tmp_path)
    assert code == 0
    assert f"{tmp_path / 'one'}" in output
    assert f"{tmp_path / 'two'} is left out: " in output


def test_the_options_that_differ() -> None:
    one = {"lr": 1.0, "encoder": {"name": "a", "width": [1]}, "from_": ""}
    other = {"lr": 2.0, "encoder": {"name": "b"}, "from_": ""}
    assert options(one) == {"lr": 1.0, "encoder": "a", "encoder.width": [1], "from": ""}
    assert differing([one, other]) == {
        "lr": [1.0, 2.0],
        "encoder": ["a", "b"],
        "encoder.width": [[1], None],
    }
    assert differing([one, one]) == {}


def test_the_command_lists_runs(runs: Path, tmp_path: Path) -> None:
    shown = genkit_here("runs", runs)
    assert shown.returncode == 0
    (line,) = [line for line in shown.stdout.splitlines() if f"{runs}/deep/two" in line]
    assert "tokenizer  done  4/4" in line
    assert "PSNR" in shown.stdout
    found = json.loads(genkit_here("runs", runs, "--json").stdout)["runs"]
    assert {Path(run["path"]).name: run["kind"] for run in found} == {
        "one": "tokenizer",
        "two": "tokenizer",
        "prior": "prior",
    }
    empty = genkit_here("runs", tmp_path)
    assert (empty.returncode, empty.stderr) == (1, f"Error: there is no run in '{tmp_path}'\n")
    gone = genkit_here("runs", tmp_path / "gone")
    assert gone.stderr == f"Error: there is no folder '{tmp_path / 'gone'}'\n"
