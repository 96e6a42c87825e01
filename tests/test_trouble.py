"""What can happen to a run directory: a full disk, no right to write, gone, wanted by two runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Silent, flags, genkit_command, rows, tiny_run

from genkit.errors import TrainingError
from genkit.training.state import load_state

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from genkit_cli.main import main
main()
"""


def in_own_mounts(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's script with file systems that it mounts for itself alone."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        check=False,
    )


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not in_own_mounts("mount -t tmpfs -o size=1m tmpfs /mnt").returncode
    )


MOUNTS = pytest.mark.skipif(not can_mount(), reason="mounting a file system takes root")


def started(*args: str | Path, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "genkit_cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **more,
    )


def wait_for(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"no {start}")


@MOUNTS
def test_a_full_disk_leaves_the_checkpoint_before_usable(tmp_path: Path) -> None:
    """A disk of two megabytes, on which many checkpoints find no place beside each other."""
    disk = tmp_path / "disk"
    disk.mkdir()
    tiny = flags({**TINY, "steps": 200, "checkpoint_every": 2, "keep": 1000})
    train = f"{sys.executable} -m genkit_cli train {' '.join(tiny)} --out {disk}/run"
    script = (
        f"mount -t tmpfs -o size=2m tmpfs {disk} && ({train}; cp -r {disk}/run {tmp_path}/after)"
    )
    done = in_own_mounts(script)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    step, state = load_state(tmp_path / "after" / "checkpoints")
    assert step > 2
    assert not state["passed_over"]
    after = tmp_path / "after"
    for old in sorted((after / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(old)
    resumed = genkit_command("train", "--resume", "--steps", str(step + 4), "--out", after)
    assert resumed.returncode == 0, resumed.stderr
    assert f"Going on from step {step}." in resumed.stdout


@MOUNTS
def test_a_read_only_directory_is_told(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    script = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && "
        f"{sys.executable} -m genkit_cli train --resume --steps 12 --out {tmp_path}/run"
    )
    done = in_own_mounts(script)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("Error:") == 1
    assert "Traceback" not in done.stderr
    assert load_state(tmp_path / "run" / "checkpoints")[0] == 8


@MOUNTS
def test_images_are_read_without_shared_memory(photographs: Path, tmp_path: Path) -> None:
    """Where /dev/shm is read-only no lock between processes can be made."""
    tiny = " ".join(flags({**TINY, "data": {}, "steps": 1, "workers": 0}))
    genkit = f"{sys.executable} -m genkit_cli"
    script = (
        "mount -t tmpfs -o ro tmpfs /dev/shm && "
        f"{genkit} train {tiny} --data {photographs} --out {tmp_path}/run && "
        f"{genkit} reconstruct {tmp_path}/run {photographs} --out {tmp_path}/pictures"
    )
    done = in_own_mounts(script)
    assert done.returncode == 0, done.stderr
    assert "12 pictures are in" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits the size of files")
def test_a_file_that_can_grow_no_further_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """As on a full disk, and without a file system of its own: the system refuses to write on."""
    tiny_run(tmp_path / "run")
    largest = (tmp_path / "run" / "checkpoints" / "step-00000008" / "tensors.safetensors").stat()
    limit = largest.st_size - 1000
    done = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, str(limit)),
            *("train", "--resume", "--steps", "12", "--out", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "the one before it is intact" in done.stderr
    assert "Traceback" not in done.stderr
    step, state = load_state(tmp_path / "run" / "checkpoints")
    assert (step, state["passed_over"]) == (8, [])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(TrainingError, match="cannot be written: File exists"):
        tiny_run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_directory_that_vanishes_ends_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    class Remove(Silent):
        def advance(self, step: int) -> None:
            if step == 3:
                shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr("conftest.Silent", Remove)
    with pytest.raises(TrainingError, match="is gone, or emptied"):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_left_half_written_goes_and_what_is_others_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny_run(out)
    half = [
        out / ".metrics.jsonl.123.tmp",
        out / ".model.safetensors.9.tmp.mode",
        out / "samples" / ".step-000500.png.77.tmp",
        out / "checkpoints" / ".step-00000012.tmp",
    ]
    others = [out / ".env.tmpl", out / ".notes.tmp", out / "samples" / ".step-mine.tmp"]
    for file in [*half[:3], *others]:
        file.write_text("x")
    half[3].mkdir()
    (half[3] / "state.json").write_text("{")
    tiny_run(out, {"steps": 10}, resume=True)
    assert not [file for file in half if file.exists()]
    assert all(file.read_text() == "x" for file in others)


def test_two_runs_in_one_directory_are_kept_apart(tmp_path: Path) -> None:
    settings = flags({**TINY, "steps": 100_000, "checkpoint_every": 10})
    first = started("train", *settings, "--out", tmp_path / "run")
    try:
        wait_for(first, "step 12/")
        second = genkit_command("train", "--resume", "--out", tmp_path / "run")
        assert second.returncode == 1
        assert "another process is training in" in second.stderr
        assert "Traceback" not in second.stderr
        first.send_signal(signal.SIGTERM)
        rest, error = first.communicate(timeout=30)
    finally:
        first.kill()
    assert first.returncode == 1
    assert error == ""
    assert "everything is saved" in rest
    step, _ = load_state(tmp_path / "run" / "checkpoints")
    assert rows(tmp_path / "run")[-1]["step"] <= step


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_stop(tmp_path: Path) -> None:
    settings = flags({**TINY, "steps": 100_000, "checkpoint_every": 100_000})
    launcher = started("train", *settings, "--processes", "2", "--out", tmp_path / "run")
    wait_for(launcher, "step 12/")
    launcher.kill()
    # The others hold its output open until they end too.
    rest, _ = launcher.communicate(timeout=60)
    assert "everything is saved" in rest
    done = genkit_command("train", "--resume", "--out", tmp_path / "run", "--steps", "1")
    assert "resume it with as many" in done.stderr or "already" in done.stderr
