"""Real processes and real signals: interrupted, launched by others, killed, failing together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import MOBILENET, TINY, flags, genkit_command, genkit_here
from safetensors.torch import load_file


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_continues(tmp_path: Path) -> None:
    """A real process gets a real signal: it saves and prints how to resume.

    The resumed run ends like an uninterrupted one.
    """
    tiny = flags(
        {**TINY, "steps": 40, "log_every": 5, "checkpoint_every": 1000, "validate_every": 1000}
    )
    command = [sys.executable, "-u", "-m", "genkit_cli", "train", *tiny, "--out", "run"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGINT)
            break
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Resume with: genkit train --resume --out run" in rest
    assert error == ""
    stopped = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert stopped < 40
    for args in (["--resume", "--out", "run"], [*tiny, "--out", "whole"]):
        done = genkit_here("train", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_several_processes_train_alike_with_any_launcher(tmp_path: Path) -> None:
    tiny = [
        *flags(TINY),
        "--attention",
        "pixel",
        "--discriminator",
        "patchgan",
        "--discriminator.norm",
        "batch",
        "--discriminator-head-start",
        "2",
    ]
    one = genkit_command("train", *tiny, "--processes", "2", "--out", "ours", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert "2 processes" in one.stdout
    assert one.stdout.count("step 8/8") == 1
    launch = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launch,
        "--main_process_port",
        "0",
        "-m",
        "genkit_cli",
    ]
    theirs = subprocess.run(
        [*command, "train", *tiny, "--out", "theirs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert theirs.returncode == 0, theirs.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_processes_train_third_party_components(tmp_path: Path) -> None:
    """Unused parameters, a frozen feature network, second derivatives through a discriminator."""
    settings = {
        **{key: value for key, value in TINY.items() if key not in ("encoder", "decoder")},
        "encoder": {"name": "timm", "model": "mobilenetv2_100", "latent_channels": 8},
        "quantizer": {"name": "residual-vq", "codebook_size": 16},
        "perceptual": {"name": "timm", "weights": MOBILENET},
        "discriminator": "stylegan",
        "discriminator_head_start": 2,
        "lecam_weight": 0.1,
        "r1_weight": 0.1,
        "r1_every": 2,
        "accumulate": 2,
    }
    chosen = [
        part
        for kind in ("encoder", "quantizer", "perceptual")
        for part in (f"--{kind}", settings[kind].pop("name"))
    ]
    done = genkit_command(
        "train", *chosen, *flags(settings), "--processes", "2", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"perceptual", "adversarial", "discriminator", "lecam", "r1"} <= row.keys()
    assert all(level["codebooks"] == 4 for level in row["levels"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"), [("SIGINT", 1), ("SIGHUP", 0), ("SIGUSR1", 0)], ids=str
)
def test_a_signal_stops_all_processes_together(name: str, workers: int, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the whole process group, a scheduler signals one process."""
    settings = flags({**TINY, "steps": 100_000, "checkpoint_every": 100_000, "workers": workers})
    command = [sys.executable, "-u", "-m", "genkit_cli", "train", *settings, "--out", "run"]
    # The tests themselves may run under nohup, whose children ignore SIGHUP.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [*command, "--processes", "2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step 4/"):
            send = os.killpg if name == "SIGINT" else os.kill
            send(process.pid, getattr(signal, name))
            break
    try:
        rest, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, error) == (130 if name == "SIGINT" else 1, "")
    assert "everything is saved. Resume with: genkit train --resume --out run" in rest
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_dead_process_ends_the_run(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "genkit_cli",
        "train",
        *flags({**TINY, "steps": 100_000}),
        "--processes",
        "2",
        "--out",
        "run",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step 4/"):
            break
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    start = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == 1
    assert "process 1 of 2 was ended by signal 9" in error
    assert "Traceback" not in error
    for child in children:
        assert not Path(f"/proc/{child}").exists()


def test_a_failure_of_every_process_is_reported_once(tmp_path: Path) -> None:
    """Also, no file in the working directory is imported instead of a library."""
    (tmp_path / "accelerate.py").write_text("raise SystemExit('a file of mine was run')")
    done = genkit_command(
        "train", *flags(TINY), "--tracker", "aim", "--processes", "2", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("Error:") == 1
    assert "needs the package aim" in done.stderr


_THREADS = """
import os
from pathlib import Path

def gloo():
    tasks = Path("/proc/self/task")
    return sum("gloo" in (tasks / task / "comm").read_text() for task in os.listdir(tasks))

from genkit.interfaces import Level
from genkit.testing.tools import met, part

with met(0, {folder!r}, 1):
    part("quantizer", "residual-vq", {{}}).build(Level(0, 8, 4))
    inside = gloo()
print(inside > 0, gloo())
"""


@pytest.mark.slow
def test_no_thread_outlives_a_group_of_processes(tmp_path: Path) -> None:
    """A thread that still runs when Python exits can abort the process, once in some hundred."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the names of threads are in /proc")
    done = subprocess.run(
        [sys.executable, "-c", _THREADS.format(folder=str(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    )
    # Older versions of PyTorch print a line of their own first.
    assert done.stdout.split()[-2:] == ["True", "0"]
