"""Trouble with a run directory: full disk, no write permission, removed, used by two runs."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    TINY,
    InterruptAt,
    Silent,
    flags,
    genkit_command,
    rows,
    same,
    tiny_run,
    weights,
)
from mounts import MOUNTS, in_own_mounts

from genkit.data.loader import loader
from genkit.errors import DataError, TrainingError
from genkit.run.directory import RunDirectory
from genkit.run.options import layered, resolve_run
from genkit.run.state import load_state
from genkit.signals import stop_signals
from genkit.training.session import check_same

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from genkit_cli.main import main
main()
"""


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


@pytest.mark.slow
@MOUNTS
def test_a_full_disk_leaves_the_previous_checkpoint_usable(tmp_path: Path) -> None:
    """The disk holds two megabytes, too little for many checkpoints."""
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
    assert f"Resuming at step {step}." in resumed.stdout


@pytest.mark.slow
@MOUNTS
def test_a_read_only_directory_is_reported(tmp_path: Path) -> None:
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
    """With a read-only /dev/shm, no lock between processes can be created."""
    tiny = flags({**TINY, "data": {}, "steps": 1, "workers": 0})
    run, pictures = str(tmp_path / "run"), str(tmp_path / "pictures")
    train = ["train", *tiny, "--data", str(photographs), "--out", run]
    commands = [train, ["reconstruct", run, str(photographs), "--out", pictures]]
    both = f"from genkit_cli.main import cli\nfor args in {commands}: "
    both += "cli(args, standalone_mode=False)"
    done = in_own_mounts(
        f"mount -t tmpfs -o ro tmpfs /dev/shm && {shlex.join([sys.executable, '-c', both])}"
    )
    assert done.returncode == 0, done.stderr
    assert "Wrote 12 pictures into" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits the size of files")
def test_a_file_size_limit_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """Like a full disk, but needs no mount: the system limits the size of files."""
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
    with pytest.raises(TrainingError, match="was removed or emptied"):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_leftovers_are_removed_and_foreign_files_stay(tmp_path: Path) -> None:
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


def test_a_directory_is_locked_while_a_run_trains_in_it(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    with first.claimed(), pytest.raises(TrainingError, match="another process"), second.claimed():
        pass
    with second.claimed():
        assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.slow
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
    # The other processes keep its output open until they end too.
    rest, _ = launcher.communicate(timeout=60)
    assert "everything is saved" in rest
    done = genkit_command("train", "--resume", "--out", tmp_path / "run", "--steps", "1")
    assert "resume it with as many" in done.stderr or "already" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_signals_of_schedulers_and_terminals_save(name: str, tmp_path: Path) -> None:
    """Also when two SIGTERMs arrive in quick succession."""
    asked = getattr(signal, name)
    reporter = InterruptAt(3, asked, signal.SIGTERM, asked)
    tiny_run(tmp_path / "run", {"checkpoint_every": 1000}, reporter=reporter)
    assert reporter.done is False
    assert load_state(tmp_path / "run" / "checkpoints")[0] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_nohup_still_works() -> None:
    # The tests themselves may run under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in stop_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


class KillAWorker(Silent):
    """Kills a worker after a step, like the kernel's out-of-memory killer."""

    def advance(self, step: int) -> None:
        if step == 3:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")
def test_a_dead_worker_loses_no_steps(tmp_path: Path) -> None:
    settings = {"workers": 2, "steps": 14, "checkpoint_every": 1000, "validate_every": 1000}
    with pytest.raises(TrainingError, match=r"died .*memory.*--workers.*--resume"):
        tiny_run(tmp_path / "run", settings, reporter=KillAWorker())
    step, state = load_state(tmp_path / "run" / "checkpoints")
    assert 3 <= step <= 10
    assert not state["passed_over"]
    tiny_run(tmp_path / "run", settings, {"workers": 0}, resume=True)
    tiny_run(tmp_path / "whole", settings, {"workers": 0})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


class Failing:
    """A data set whose error cannot be pickled, so it cannot be sent to another process."""

    fingerprint, channels, problems = "failing", 3, {"a": "b"}

    def __len__(self) -> int:
        return 4

    def images(self, indices: Any, seeds: Any = None) -> Any:
        class LocalError(Exception):
            pass

        raise (LocalError if seeds[0] else DataError)("what went wrong")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_the_same_with_and_without_workers(workers: int) -> None:
    for seed, kind in ((0, DataError), (1, Exception)):
        run = resolve_run(layered(None, TINY, {"workers": workers, "seed": seed}))
        with pytest.raises(kind, match="what went wrong") as caught:
            next(iter(loader(run, Failing(), 0, 1, 0)))  # type: ignore[arg-type]
        assert seed or str(caught.value) == "what went wrong"


@pytest.mark.slow
@MOUNTS
def test_workers_need_no_shared_memory(tmp_path: Path) -> None:
    """/dev/shm is as small as in some containers; a run that needed more would hang."""
    settings = flags({**TINY, "resolution": 64, "batch_size": 16, "workers": 2, "steps": 2})
    done = in_own_mounts(
        "mount -t tmpfs -o size=256k tmpfs /dev/shm && timeout 60 "
        f"{sys.executable} -m genkit_cli train {' '.join(settings)} --out {tmp_path}/run"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 2/2" in done.stdout


def test_workers_that_cannot_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their locks are in /dev/shm, which may be full."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    run = resolve_run(layered(None, TINY, {"workers": 1}))
    dataset = run.data.build((32, 32), 0).split("train")
    monkeypatch.setattr(multiprocessing, "Lock", full)
    with pytest.raises(TrainingError, match="No space left on device; give --workers 0"):
        loader(run, dataset, 0, 1, 0)


class BreakHeldOut(Silent):
    """Truncates every image after a step."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def advance(self, step: int) -> None:
        for file in self.folder.rglob("*.png") if step == 3 else ():
            file.write_bytes(file.read_bytes()[:100])


def test_a_failed_validation_loses_no_steps(photographs: Path, tmp_path: Path) -> None:
    data = {"name": "folder", "location": str(photographs), "cache": 0}
    settings = {
        **{key: value for key, value in TINY.items() if key != "data"},
        **{"data": data, "validate_every": 4, "checkpoint_every": 1000, "batch_size": 2},
    }
    run = resolve_run(layered(None, settings))
    trained_on = run.data.build((32, 32), 0).split("train")
    kept = {
        name: (photographs / name).read_bytes()
        for name in map(trained_on.name, range(len(trained_on)))
    }

    class BreakOthers(BreakHeldOut):
        def advance(self, step: int) -> None:
            super().advance(step)
            for name, content in kept.items():
                (photographs / name).write_bytes(content)

    from genkit.training.loop import train
    from genkit.training.tokenizer import TokenizerTask

    with pytest.raises(DataError, match=r"none of the images can be read, first [^(]*: "):
        train(TokenizerTask, run, tmp_path / "run", BreakOthers(photographs))
    assert load_state(tmp_path / "run" / "checkpoints")[0] == 4


def test_a_finished_run_is_reported(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", {"steps": 2})
    with pytest.raises(TrainingError, match=r"run' is at step 2 already: give a larger --steps"):
        tiny_run(tmp_path / "run", {"steps": 2}, resume=True)


def test_one_process_is_singular_in_messages() -> None:
    before = {"fingerprint": "a", "processes": 1, "versions": {}}
    with pytest.raises(TrainingError, match="trained by 1 process: resume"):
        check_same({**before, "processes": 2}, before)
