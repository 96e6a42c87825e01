"""The processes of a run: which launchers may start them, and how they meet."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from genkit.devices import local_processes, pick_device
from genkit.distributed import all_gathered, processes
from genkit.errors import OptionError, TrainingError
from genkit.files import CONFIG
from genkit.run.config import new_directory, newest_directory, no_run
from genkit.run.options import TrainingOptions
from genkit.training.launchers import INSTEAD, check_launcher
from genkit.training.meeting import LAUNCHED
from genkit.training.numerics import check_tf32

if TYPE_CHECKING:
    from accelerate.utils import DistributedType

# The time that processes wait until all have come, and later for each other. One may list millions
# of files on a slow disk while the others wait; NCCL would give up after ten minutes.
_MEETING, _TOGETHER = timedelta(minutes=10), timedelta(hours=2)


def check_distributed(kind: DistributedType) -> None:
    """`TrainingError` if the processes have met in a way that is not one of torch's DDP."""
    from accelerate.utils import DistributedType

    if kind is not DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise TrainingError(
            f"Accelerate found {kind.value} here, and a run trains whole models side by side "
            f"(DDP) on CPUs or GPUs: {INSTEAD}"
        )


def join(run: TrainingOptions) -> None:
    """Meet the other processes, if there are any.

    `OptionError` for a device, precision or tracker that this machine lacks.
    """
    device = pick_device(run.device or None, run.mixed_precision)
    run.check_here()
    if run.tf32:
        check_tf32(device)
    check_launcher(run, torch.accelerator.device_count())
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"--device {run.device} is one device, but each process needs its own: "
            "leave the number out"
        )
    if device.type != "cpu":
        check_devices(torch.accelerator.device_count())
    check_distributed(_met(device))


def check_devices(count: int) -> None:
    """`OptionError` if there are more processes on this machine than its `count` of GPUs.

    Two processes would share a GPU, which NCCL refuses in the first step.
    """
    here = local_processes()
    # A scheduler may show each process a GPU of its own. `genkit train --processes` does not.
    alone = count == 1 and LAUNCHED not in os.environ
    if here > count and not alone:
        gpus = "1 GPU" if count == 1 else f"{count} GPUs"
        raise OptionError(
            f"--processes {here} needs as many GPUs, and this machine has {gpus}: give --processes "
            f"{count}, or --device cpu"
        )


def idle_devices(run: TrainingOptions, device: torch.device) -> int:
    """The number of this machine's GPUs that no process of the run uses; 0 if it names its own."""
    if device.type == "cpu" or ":" in run.device:
        return 0
    return max(0, torch.accelerator.device_count() - local_processes())


def check_agreed(**facts: str) -> None:
    """`TrainingError` if a process has another value of one of the `facts` than process 0."""
    every = all_gathered(facts)
    for number, theirs in enumerate(every):
        if differing := [name for name in facts if theirs[name] != every[0][name]]:
            name = differing[0]
            raise TrainingError(
                f"process {number} has other {name} than process 0: {_shortened(theirs[name])} and "
                f"{_shortened(every[0][name])}. Give all machines the same command and files"
            )


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _met(device: torch.device) -> DistributedType:
    """Let the processes meet, each on its device, and return how they are distributed."""
    # Accelerate keeps the device of a process's first run, and a later one may have another.
    if processes() == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=_MEETING)
    except dist.DistError as error:
        raise TrainingError(
            "the processes did not meet: see what those on the other machines say, and whether "
            f"MASTER_ADDR {os.environ.get('MASTER_ADDR')} can be reached from them ({error})"
        ) from error
    finally:
        if device.index is not None:
            del os.environ["ACCELERATE_TORCH_DEVICE"]
    if processes() > 1:
        # Before PyTorch 2.15 it had another name.
        lengthen = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        lengthen(_TOGETHER, dist.group.WORLD)
    return state.distributed_type


def make_accelerator(run: TrainingOptions, directory: Path) -> Accelerator:
    """The Accelerator of a run."""
    # Accelerate keeps the precision of a process's first run, and a later one may have another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=pick_device(run.device or None).type == "cpu",
        mixed_precision=run.mixed_precision,
        project_dir=str(directory),
    )


def run_directory(accelerator: Accelerator) -> Path:
    """The run directory that an Accelerator was made for."""
    return Path(accelerator.project_dir)


def agreed_directory(out: Path | None, run: TrainingOptions, resume: bool) -> Path:
    """The run directory, chosen by the first process for all: `out`, or `runs/NAME`."""
    if out is None:
        out = newest_directory(kind=type(run)) if resume else new_directory(run.name)
    if resume and not (out / CONFIG).is_file():
        raise no_run(out)
    choice: list[Any] = [str(out)]
    if processes() > 1:
        broadcast_object_list(choice)
    return Path(choice[0])
