"""Which launchers may start the processes of a run; imports no torch."""

from __future__ import annotations

import os

from genkit.errors import TrainingError
from genkit.run.options import TrainingOptions

# Accelerate's variables for ways of training that split the model among processes.
_SHARDED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_MEETING = (*_RANKS, "MASTER_ADDR", "MASTER_PORT")
# How to start a run instead.
INSTEAD = "start it with genkit train --processes, torchrun, or accelerate launch --multi_gpu"


def check_launcher(run: TrainingOptions, devices: int) -> None:
    """`TrainingError` if the launcher asks for another run, or left its variables behind.

    It is asked before Accelerate is, which would go that way or fail over a missing package.
    `devices` says how many GPUs this machine has.
    """
    check_meeting()
    for variable, name in _SHARDED.items():
        if _is_on(variable):
            raise TrainingError(
                f"the launcher asks for {name} ({variable}), and a run trains whole models side by "
                f"side (DDP): {INSTEAD}"
            )
    if _is_on("ACCELERATE_USE_FSDP"):
        _check_sharding(run, devices)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise TrainingError(
            f"the launcher asks to compile the model (ACCELERATE_DYNAMO_BACKEND {backend}): launch "
            "it with --dynamo_backend no, and give genkit --compile instead"
        )
    if devices and _is_on("ACCELERATE_USE_CPU"):
        raise TrainingError(
            "the launcher asks for the CPU (ACCELERATE_USE_CPU) where there is a GPU: launch it "
            "without --cpu, or hide the GPU with CUDA_VISIBLE_DEVICES=''"
        )
    kind, _, number = os.environ.get("ACCELERATE_TORCH_DEVICE", "cpu").partition(":")
    if kind != "cpu" and (number or "0") not in map(str, range(devices)):
        raise TrainingError(
            f"ACCELERATE_TORCH_DEVICE is '{os.environ['ACCELERATE_TORCH_DEVICE']}', which this "
            "machine does not have: unset it"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", run.mixed_precision):
        instead = (
            f"give --mixed-precision {precision}, or " if precision in ("bf16", "fp16") else ""
        )
        raise TrainingError(
            f"the launcher asks for {precision} (ACCELERATE_MIXED_PRECISION), and the run for "
            f"--mixed-precision {run.mixed_precision}: {instead}launch it with --mixed_precision no"
        )
    passes = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if passes not in ("1", str(run.accumulate)):
        raise TrainingError(
            f"the launcher asks for {passes} batches a step "
            f"(ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and the run for --accumulate "
            f"{run.accumulate}: give --accumulate {passes}, or launch it with "
            "--gradient_accumulation_steps 1"
        )


def _check_sharding(run: TrainingOptions, devices: int) -> None:
    """`TrainingError` if a run cannot be sharded in the way that the launcher asks for."""
    version = os.environ.get("FSDP_VERSION", "1")
    if not run.sharded:
        problem, instead = f"genkit {run.command} trains whole models side by side (DDP)", INSTEAD
    elif version != "2":
        problem, instead = f"priors are sharded by version 2, not {version}", "--fsdp_version 2"
    elif not devices:
        problem, instead = "Accelerate shards models on GPUs alone", "launch it without --use_fsdp"
    elif run.mixed_precision == "fp16":
        problem, instead = "sharded priors have no fp16", "give --mixed-precision bf16"
    elif _is_on("FSDP_OFFLOAD_PARAMS"):
        problem, instead = "weights stay on the GPUs", "--fsdp_offload_params false"
    elif _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        problem = "activations are kept"
        instead = "--fsdp_activation_checkpointing false"
    else:
        return
    raise TrainingError(
        f"the launcher asks for FSDP (ACCELERATE_USE_FSDP), but {problem}: {instead}"
    )


def check_meeting() -> None:
    """`TrainingError` if variables that processes need to meet are missing or wrong.

    A shell, a notebook or a scheduler may have some of them left over.
    """
    given = {name: os.environ[name].strip() for name in _MEETING if name in os.environ}
    left = "a launcher sets it with the others: unset it, or start the run with a launcher"
    numbers = {}
    for name in (*_RANKS, "MASTER_PORT"):
        try:
            numbers[name] = int(given.get(name, "-1"))
        except ValueError:
            raise TrainingError(f"{name} is '{given[name]}', not a number; {left}") from None
    if numbers["LOCAL_RANK"] < 0 and numbers["WORLD_SIZE"] <= 1:
        return
    missing = [name for name in _MEETING if not given.get(name)]
    there = next((name for name in ("LOCAL_RANK", "WORLD_SIZE") if given.get(name)), "")
    if missing:
        raise TrainingError(f"{there} is set, and {' and '.join(missing)} not; {left}")
    for name, above in (("RANK", numbers["WORLD_SIZE"]), ("MASTER_PORT", 2**16)):
        if not 0 <= numbers[name] < above:
            raise TrainingError(f"{name} is {numbers[name]}, not a number below {above}; {left}")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")
