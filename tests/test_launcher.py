"""Launchers that ask for what a run does not do, and variables that would change it unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.utils import DistributedType
from conftest import same, tiny_run, weights

from genkit.errors import TrainingError
from genkit.training.launcher import check_distributed, check_launcher


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ],
)
def test_sharded_training_is_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "false")
    check_launcher(gpu=False)
    monkeypatch.setenv(variable, "True")
    with pytest.raises(TrainingError, match=rf"{name}.*{variable}.*--processes"):
        check_launcher(gpu=False)


def test_compiling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    check_launcher(gpu=True)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(TrainingError, match="--dynamo_backend no"):
        check_launcher(gpu=True)


def test_the_cpu_is_refused_beside_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_launcher(gpu=False)
    with pytest.raises(TrainingError, match="CUDA_VISIBLE_DEVICES"):
        check_launcher(gpu=True)


def test_only_ddp_is_trained_with() -> None:
    for kind in DistributedType:
        if kind is DistributedType.NO or kind.value.startswith("MULTI_"):
            check_distributed(kind)
        else:
            with pytest.raises(TrainingError, match=kind.value):
                check_distributed(kind)


def test_the_environment_does_not_set_how_gradients_accumulate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Accelerate's own options do yield to it."""
    settings = {"accumulate": 2, "steps": 2}
    tiny_run(tmp_path / "before", settings)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "5")
    tiny_run(tmp_path / "after", settings)
    assert same(weights(tmp_path / "before"), weights(tmp_path / "after"))
