"""Two machines on the loopback interface, started by torchrun and by Accelerate.

Each has a working folder of its own, as machines without a common disk have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import TINY, flags
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
RUN = ["train", *flags({**TINY, "steps": 6, "checkpoint_every": 3}), "--out", "run"]


class Machine:
    """A folder, and the command of a launcher in it."""

    def __init__(self, folder: Path, node: int, port: int, args: Sequence[str], by: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        launchers = {
            "torchrun": [
                *("torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", str(node)),
                *("--master-addr", "127.0.0.1", "--master-port", str(port)),
            ],
            "accelerate": [
                *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"),
                *("--num_processes", "2", "--machine_rank", str(node)),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
                *("--mixed_precision", "no", "--dynamo_backend", "no"),
            ],
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", *launchers[by], "-m", "genkit_cli", *args],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> tuple[int, str, str]:
        """The exit code and what it printed; a machine that hangs is an error."""
        try:
            said, error = self.process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            self.switch_off()
            raise
        return self.process.returncode, said, error

    def switch_off(self) -> None:
        """Kill the launcher and its process at once; a launcher's processes outlive it."""
        command = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        self.process.kill()
        for pid in map(int, found.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def start(place: Path, args: Sequence[str], by: str = "torchrun") -> list[Machine]:
    """Start the same command on both machines, the second one first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Machine(place / f"machine-{n}", n, port, args, by) for n in (1, 0)][::-1]


@pytest.mark.parametrize("by", ["torchrun", "accelerate"])
def test_a_new_run_needs_no_common_disk(by: str, tmp_path: Path) -> None:
    first, second = (each.ended() for each in start(tmp_path, RUN, by))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "2 processes, 8 images per step" in first[1]
    assert second[1] == ""
    out = tmp_path / "machine-0" / "run"
    assert load_file(out / "model.safetensors")
    assert not list((tmp_path / "machine-1").iterdir())


def test_resuming_needs_the_run_on_every_machine(tmp_path: Path) -> None:
    assert [each.ended()[0] for each in start(tmp_path, RUN)] == [0, 0]
    longer = ["train", "--resume", "--out", "run", "--steps", "8"]
    waiting, lacking = start(tmp_path, longer)
    code, _, error = lacking.ended()
    waiting.switch_off()
    assert code
    assert "every machine needs the run directory to resume: share it or copy it" in error
    ours, theirs = (tmp_path / f"machine-{number}" / "run" for number in range(2))
    shutil.copytree(ours, theirs)
    first, second = (each.ended() for each in start(tmp_path, longer))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Resuming at step 6" in first[1]
    # A copy that stayed behind.
    first, second = (each.ended() for each in start(tmp_path, [*longer[:-1], "9"]))
    assert all((first[0], second[0]))
    assert "process 1 has other step than process 0: 6 and 8" in first[2] + second[2]


def test_a_prior_asks_for_a_common_disk(tmp_path: Path, trained: Path) -> None:
    prior = ["train-prior", str(trained), "--steps", "2", "--heldout", "8", "--shown", "0"]
    prior += ["--width", "16", "--heads", "2", "--depth", "1", "--out"]
    for machine in start(tmp_path / "own", [*prior, "run"]):
        code, _, error = machine.ended()
        assert code
        assert "on a disk that they share" in error
    for machine in start(tmp_path / "common", [*prior, str(tmp_path / "common" / "run")]):
        code, _, error = machine.ended()
        assert code == 0, error
    assert load_file(tmp_path / "common" / "run" / "model.safetensors")


def test_the_loss_of_a_machine_ends_the_others(tmp_path: Path) -> None:
    settings = flags({**TINY, "steps": 100_000, "checkpoint_every": 4})
    first, second = start(tmp_path, ["train", *settings, "--out", "run"])
    assert first.process.stdout
    for line in first.process.stdout:
        if line.startswith("step 6/"):
            break
    second.switch_off()
    since = time.monotonic()
    code, _, error = first.ended()
    assert time.monotonic() - since < 60
    assert code
    assert "another process of this run is gone; the last checkpoint is intact" in error
    (step, *_) = sorted((tmp_path / "machine-0" / "run" / "checkpoints").glob("step-*"))
    assert all(value.isfinite().all() for value in load_file(step / "tensors.safetensors").values())
