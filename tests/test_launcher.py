"""Launcher configurations that a run refuses, and leftover launcher variables."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType
from conftest import TINY, tiny_run
from genkit_cli.launch import is_launched

from genkit.errors import TrainingError
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.run.prior import PriorRun
from genkit.training.launchers import check_launcher
from genkit.training.processes import check_distributed

RUN = resolve_run(layered(None, TINY, {"accumulate": 2}))
BF16 = resolve_run(layered(None, TINY, {"mixed_precision": "bf16"}))
WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ],
)
def test_sharded_training_is_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "false")
    check_launcher(RUN, 0)
    monkeypatch.setenv(variable, "True")
    with pytest.raises(TrainingError, match=rf"{name}.*{variable}.*--processes"):
        check_launcher(RUN, 0)


@pytest.mark.parametrize(
    ("kind", "devices", "variables", "message"),
    [
        ({"sharded": False, "command": "train"}, 2, {}, "train trains whole models.*--processes"),
        ({}, 2, {"FSDP_VERSION": "1"}, "version 2, not 1: --fsdp_version 2"),
        ({}, 0, {}, "on GPUs alone: launch it without --use_fsdp"),
        ({"mixed_precision": "fp16"}, 2, {}, "no fp16: give --mixed-precision bf16"),
        ({}, 2, {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params false"),
        ({}, 2, {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing false"),
        ({}, 2, {}, ""),
    ],
)
def test_a_prior_alone_is_sharded(
    kind: dict[str, Any],
    devices: int,
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Any = SimpleNamespace(
        **{"sharded": True, "command": "train-prior", "mixed_precision": "no", "accumulate": 1},
    )
    vars(run).update(kind)
    variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **variables}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = pytest.raises(TrainingError, match=message) if message else nullcontext()
    with refused:
        check_launcher(run, devices)


def test_tokenizers_are_not_sharded_and_priors_are() -> None:
    assert not TokenizerRun.sharded
    assert PriorRun.sharded


def test_compiling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    check_launcher(RUN, 1)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(TrainingError, match="--dynamo_backend no, and give genkit --compile"):
        check_launcher(RUN, 1)


def test_the_cpu_is_refused_only_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_launcher(RUN, 0)
    with pytest.raises(TrainingError, match="CUDA_VISIBLE_DEVICES"):
        check_launcher(RUN, 1)


def test_only_ddp_is_accepted() -> None:
    for kind in DistributedType:
        if kind is DistributedType.NO or kind.value.startswith("MULTI_"):
            check_distributed(kind)
        else:
            with pytest.raises(TrainingError, match=kind.value):
                check_distributed(kind)


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, devices in (("cpu", 0), ("cuda", 1), ("cuda:1", 2)):
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
        check_launcher(RUN, devices)
    for device, devices in (("cuda", 0), ("cuda:1", 1), ("cuda:one", 1), ("nonsense", 0)):
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
        with pytest.raises(TrainingError, match=f"ACCELERATE_TORCH_DEVICE is '{device}'"):
            check_launcher(RUN, devices)


def test_a_conflicting_precision_or_accumulation_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Accelerate's launcher always sets both; `no` and 1 are its defaults."""
    precision, passes = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    for name, value, run in (
        (precision, "no", BF16),
        (precision, "bf16", BF16),
        (passes, "1", RUN),
        (passes, "2", RUN),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_launcher(run, 0)
    with monkeypatch.context() as patch:
        patch.setenv(precision, "bf16")
        with pytest.raises(TrainingError, match="give --mixed-precision bf16, or launch it with"):
            tiny_run(tmp_path / "run")
        patch.setenv(precision, "fp8")
        with pytest.raises(TrainingError, match="no: launch it with --mixed_precision no"):
            check_launcher(RUN, 0)
    monkeypatch.setenv(passes, "4")
    with pytest.raises(TrainingError, match="give --accumulate 4, or launch it with"):
        check_launcher(RUN, 0)
    assert not list(tmp_path.iterdir())


def test_leftover_launcher_variables_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every combination of variables that are missing, empty, not a number or right.

    An accepted combination means one process, or has everything that several need to meet.
    """
    states = [(None, "", "x", right) for right in WHOLE.values()]
    for values in itertools.product(*states):
        there = dict(zip(WHOLE, values, strict=True))
        for name, value in there.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        several = there["WORLD_SIZE"] == "2" or there["LOCAL_RANK"] == "1"
        try:
            check_launcher(RUN, 0)
        except TrainingError as error:
            message = str(error)
            named = [name for name, value in there.items() if value is not None and name in message]
            assert named, there
            assert "\n" not in message
        else:
            assert not several or all(there[name] not in (None, "") for name in WHOLE)
            assert "x" not in [there[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")]


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("MASTER_PORT", "70000")])
def test_impossible_launcher_values_are_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, right in WHOLE.items():
        monkeypatch.setenv(variable, right)
    check_launcher(RUN, 0)
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=f"{name} is {value}"):
        check_launcher(RUN, 0)


def test_a_conflicting_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_launched(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched(2)
    for left in ("1", "", "x"):
        monkeypatch.setenv("WORLD_SIZE", left)
        with pytest.raises(TrainingError, match=f"2 processes.*WORLD_SIZE to '{left}'.*unset"):
            is_launched(2)
