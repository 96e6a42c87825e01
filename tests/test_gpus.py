"""Starting on GPUs, which this machine pretends to have: what is refused, and what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, flags, genkit_here

from genkit.devices import local_processes, pick_device
from genkit.errors import OptionError, TrainingError
from genkit.run.config import no_run
from genkit.run.options import layered, resolve_run
from genkit.training import learner, processes
from genkit.training.processes import check_devices, idle_devices, join

RUN = resolve_run(layered(None, TINY))
# The architectures of a wheel of PyTorch 2.15 for CUDA 13.
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
Gpus = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Makes the machine seem to have GPUs of a compute capability."""

    def seem(count: int, capability: tuple[int, int] = (9, 0), built: Any = WHEEL) -> None:
        properties = SimpleNamespace(major=capability[0], minor=capability[1])
        for where, name, value in (
            (torch.accelerator, "is_available", True),
            (torch.accelerator, "current_accelerator", torch.device("cuda")),
            (torch.accelerator, "device_count", count),
            (torch.cuda, "is_available", True),
            (torch.cuda, "current_device", 0),
            (torch.cuda, "get_device_properties", properties),
            (torch.cuda, "get_device_capability", capability),
            (torch.cuda, "get_arch_list", built),
            # It says so of every GPU, since old ones emulate it.
            (torch.cuda, "_check_bf16_tensor_supported", True),
        ):
            monkeypatch.setattr(where, name, lambda *_, value=value: value)
        monkeypatch.setattr(torch.version, "hip", None)

    return seem


@pytest.mark.parametrize(("capability", "fine"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_gpus_have_no_bfloat16(capability: tuple[int, int], fine: bool, gpus: Gpus) -> None:
    """cuDNN has no bfloat16 convolutions for a T4, though PyTorch says that it supports it."""
    gpus(1, capability)
    assert torch.cuda.is_bf16_supported()
    assert pick_device("cuda", "fp16").type == "cuda"
    if fine:
        assert pick_device("cuda", "bf16").type == "cuda"
        return
    with pytest.raises(OptionError, match="no bfloat16 units: use --mixed-precision fp16"):
        pick_device("cuda", "bf16")
    assert pick_device("cpu", "bf16").type == "cpu"


@pytest.mark.parametrize(
    ("capability", "built", "fine"),
    [
        ((6, 0), WHEEL, False),
        ((7, 0), WHEEL, False),
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((9, 0), WHEEL, True),
        ((13, 0), WHEEL, True),
        ((13, 0), WHEEL[:-1], False),
        ((8, 0), ["sm_86"], False),
        ((9, 1), ["sm_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((6, 0), [], True),
    ],
)
def test_a_gpu_without_kernels_is_refused(
    capability: tuple[int, int], built: list[str], fine: bool, gpus: Gpus
) -> None:
    gpus(1, capability, built)
    if fine:
        assert pick_device().type == "cuda"
        return
    number = f"{capability[0]}.{capability[1]}"
    with pytest.raises(OptionError, match=rf"capability {number}, only {built[0]}.*--device cpu"):
        pick_device()
    assert pick_device("cpu").type == "cpu"


def test_more_processes_than_gpus_are_refused(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the processes meet: no address is listened at here."""
    gpus(2)
    meeting = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**meeting, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=r"--processes 4 .* has 2 GPUs: give --processes 2"):
        join(RUN)
    check_devices(4)
    # srun may show each process its own GPU alone; our launcher does not.
    check_devices(1)
    monkeypatch.setenv("GENKIT_LAUNCHED", "1")
    with pytest.raises(OptionError, match="1 GPU: give --processes 1"):
        check_devices(1)


def test_idle_gpus_are_counted(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(8)
    cuda = torch.device("cuda")
    assert idle_devices(RUN, cuda) == 7
    assert idle_devices(RUN, torch.device("cpu")) == 0
    named = resolve_run(layered(None, TINY, {"device": "cuda:3"}))
    assert idle_devices(named, torch.device("cuda:3")) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert idle_devices(RUN, cuda) == 0


def test_idle_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genkit.training.session.idle_devices", lambda *_: 7)
    done = genkit_here("train", *flags({**TINY, "steps": 0}), "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7 more GPUs are idle: --processes 8 uses all, with 8 times the images" in done.stdout


def test_no_process_names_its_gpu_by_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 3 may see a single GPU, number 0; `device_ids=[3]` would be an error."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(learner, "processes", lambda: 4)
    monkeypatch.setattr(learner, "DistributedDataParallel", lambda _, **given: seen.update(given))
    learner.exchanging(torch.nn.Linear(2, 2))
    assert seen == {"broadcast_buffers": False}
    assert "wait_for_everyone" not in Path(processes.__file__).with_name("session.py").read_text()


@pytest.mark.parametrize(
    ("variables", "here"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8", "RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "8", "RANK": "1"}, 8),
        ({"WORLD_SIZE": "8", "RANK": "1", "SLURM_STEP_NUM_NODES": "2"}, 4),
        ({"WORLD_SIZE": "9", "RANK": "1", "SLURM_NNODES": "2"}, 5),
    ],
)
def test_processes_of_this_machine_are_counted(
    variables: dict[str, str], here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_processes() == here


def test_a_machine_without_the_run_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    error = no_run(Path("run"))
    assert isinstance(error, TrainingError)
    assert "every machine" not in str(error)
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "every machine needs the run directory to resume" in str(no_run(Path("run")))


# Runs each command of the arguments; the import of torch ends it.
_BEFORE_TORCH = """
import json, sys
from genkit_cli.main import main

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy"):
            print("TORCH", flush=True)
            raise SystemExit(99)

sys.meta_path.insert(0, Watch())
for args in json.loads(sys.argv[1]):
    sys.argv = ["genkit", *args]
    print(args, flush=True)
    try:
        main()
    except SystemExit as end:
        print("CODE", end.code, flush=True)
"""


def test_what_can_be_refused_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "held" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "held" / "config.toml").touch()
    refused = [
        ["train", "--steps", "x"],
        ["train", "--encoder", "arne"],
        ["train", "--no-such-option"],
        ["train", "--data", "nowhere"],
        ["train", "--config", "nowhere.toml"],
        ["train", "--from", "nowhere"],
        ["train", "--tracker", "aim"],
        ["train", "--out", "file"],
        ["train", "--out", "file/run"],
        ["train", "--out", "held"],
        ["train", "--resume", "--out", "nowhere"],
        ["train-prior", "nowhere"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE_TORCH, json.dumps([*refused, ["train", "--out", "new"]])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.splitlines()
    assert said.count("TORCH") == 1, done.stdout
    # The accepted command says so first.
    assert said[-4:] == [
        "['train', '--out', 'new']",
        "Loading PyTorch and the data …",
        "TORCH",
        "CODE 99",
    ], done.stderr
    codes = [line for line in said[:-4] if line.startswith("CODE")]
    assert len(codes) == len(refused)
    assert set(codes) == {"CODE 1", "CODE 2"}, done.stderr
    assert done.stderr.count("Error: ") == len(refused)


@pytest.mark.parametrize(
    "optimizer",
    [
        "muon",
        pytest.param("adam", marks=pytest.mark.slow),
        pytest.param("adamw", marks=pytest.mark.slow),
    ],
)
def test_the_first_step_needs_neither_the_compiler_nor_tensors_of_several_machines(
    optimizer: str, tmp_path: Path
) -> None:
    """Each takes as long to import as torch and Accelerate together."""
    code = """
import os, sys
from genkit_cli.main import main
from genkit_cli.progress import Progress

def end(self, step):
    print(*(name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy", "timm")
            if name in sys.modules), "step", step, flush=True)
    os._exit(0)

Progress.advance = end
main()
"""
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "train", "--optimizer", optimizer),
            *(*flags(TINY), "--out", "run"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["step 1"], done.stderr
