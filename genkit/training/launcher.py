"""What may start the processes of a run: anything that leaves the training to it."""

from __future__ import annotations

import os

from accelerate.utils import DistributedType

from genkit.errors import TrainingError

# What Accelerate's launcher sets for a way of training in which a process has not the whole model.
_SHARDED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_INSTEAD = "start it with genkit train --processes, torchrun, or accelerate launch --multi_gpu"


def check_launcher(gpu: bool) -> None:
    """`TrainingError` if the launcher asks for a way of training that runs do not have.

    It is asked before Accelerate is, which would go that way or fail over a missing package. `gpu`
    says whether this machine has one.
    """
    for variable, name in _SHARDED.items():
        if _is_on(variable):
            raise TrainingError(
                f"the launcher asks for {name} ({variable}), and a run trains whole models side by "
                f"side (DDP): {_INSTEAD}"
            )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise TrainingError(
            f"the launcher asks to compile the model (ACCELERATE_DYNAMO_BACKEND {backend}), which "
            "runs do not: launch it with --dynamo_backend no"
        )
    if gpu and _is_on("ACCELERATE_USE_CPU"):
        raise TrainingError(
            "the launcher asks for the CPU (ACCELERATE_USE_CPU) where there is a GPU: launch it "
            "without --cpu, or hide the GPU with CUDA_VISIBLE_DEVICES=''"
        )


def check_distributed(kind: DistributedType) -> None:
    """`TrainingError` if the processes have met in a way that is not one of torch's DDP."""
    if kind is not DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise TrainingError(
            f"Accelerate found {kind.value} here, and a run trains whole models side by side "
            f"(DDP) on CPUs or GPUs: {_INSTEAD}"
        )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")
