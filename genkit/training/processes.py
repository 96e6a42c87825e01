"""The processes of a run: which launchers may start them, and how they meet."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
)

from genkit.devices import pick_device
from genkit.distributed import processes
from genkit.errors import OptionError, TrainingError
from genkit.files import CONFIG
from genkit.run.config import new_directory, newest_directory
from genkit.run.options import TrainingOptions
from genkit.training.numerics import check_tf32

if TYPE_CHECKING:
    from accelerate.utils import DistributedType

    from genkit.run.options import TrainingOptions

# Accelerate's variables for ways of training that split the model among processes.
_SHARDED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_MEETING = (*_RANKS, "MASTER_ADDR", "MASTER_PORT")
_INSTEAD = "start it with genkit train --processes, torchrun, or accelerate launch --multi_gpu"


def check_launcher(run: TrainingOptions, devices: int) -> None:
    """`TrainingError` if the launcher asks for another run, or left its variables behind.

    It is asked before Accelerate is, which would go that way or fail over a missing package.
    `devices` says how many GPUs this machine has.
    """
    _check_meeting()
    for variable, name in _SHARDED.items():
        if _is_on(variable):
            raise TrainingError(
                f"the launcher asks for {name} ({variable}), and a run trains whole models side by "
                f"side (DDP): {_INSTEAD}"
            )
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


def _check_meeting() -> None:
    """`TrainingError` if some of the variables by which processes meet are missing or wrong.

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


def check_distributed(kind: DistributedType) -> None:
    """`TrainingError` if the processes have met in a way that is not one of torch's DDP."""
    from accelerate.utils import DistributedType

    if kind is not DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise TrainingError(
            f"Accelerate found {kind.value} here, and a run trains whole models side by side "
            f"(DDP) on CPUs or GPUs: {_INSTEAD}"
        )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")


def join(run: TrainingOptions) -> None:
    """Meet the other processes, if there are any.

    `OptionError` for a device, precision or tracker that this machine lacks.
    """
    device = pick_device(run.device or None, run.mixed_precision)
    if run.tracker != "none" and importlib.util.find_spec(run.tracker) is None:
        extra = f": pip install 'genkit-vq[{run.tracker}]'" if run.tracker == "tensorboard" else ""
        raise OptionError(
            f"--tracker {run.tracker} needs the package {run.tracker}, "
            f"which is not installed{extra}"
        )
    if run.tf32:
        check_tf32(device)
    # Accelerate passes the option on under the name that torch is giving up.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    check_launcher(run, torch.accelerator.device_count())
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"--device {run.device} is one device, but each process needs its own: "
            "leave the number out"
        )
    check_distributed(_met(device))


def _met(device: torch.device) -> DistributedType:
    """Let the processes meet, each on its device, and return how they are distributed."""
    # Accelerate keeps the device of a process's first run, and a later one may have another.
    if processes() == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.index is None:
        return PartialState(cpu=device.type == "cpu").distributed_type
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        return PartialState(cpu=device.type == "cpu").distributed_type
    finally:
        del os.environ["ACCELERATE_TORCH_DEVICE"]


def make_accelerator(run: TrainingOptions, directory: Path) -> Accelerator:
    """The Accelerator of a run."""
    # Accelerate keeps the precision of a process's first run, and a later one may have another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=pick_device(run.device or None).type == "cpu",
        mixed_precision=run.mixed_precision,
        log_with=None if run.tracker == "none" else run.tracker,
        project_dir=str(directory / "tracker"),
        # Codebooks and batch norms keep themselves identical.
        # A broadcast at every forward pass would also write to buffers that the discriminator's
        # first pass still needs for its gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def run_directory(accelerator: Accelerator) -> Path:
    """The run directory that an Accelerator was made for."""
    return Path(accelerator.project_dir).parent


def agreed_directory(out: Path | None, run: TrainingOptions, resume: bool) -> Path:
    """The run directory, chosen by the first process for all: `out`, or `runs/NAME`."""
    if out is None:
        out = newest_directory(kind=type(run)) if resume else new_directory(run.name)
    if resume and not (out / CONFIG).is_file():
        raise TrainingError(f"'{out}' holds no run to resume: it has no {CONFIG}")
    choice: list[Any] = [str(out)]
    if processes() > 1:
        broadcast_object_list(choice)
    return Path(choice[0])
