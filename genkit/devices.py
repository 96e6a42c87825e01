"""The device and the precision of a computation."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from genkit.errors import GenkitError, OptionError

if TYPE_CHECKING:
    import torch
    from torch import nn

PRECISIONS = ("no", "bf16", "fp16")


def pick_device(name: str | None = None, mixed_precision: str = "no") -> torch.device:
    """The device of a name; by default the accelerator if the machine has one, else the CPU.

    Raises `OptionError` if the machine lacks the device, or the device lacks the precision.
    """
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    check_precision(mixed_precision)
    try:
        device = (here or torch.device("cpu")) if name is None else torch.device(name)
    except RuntimeError:
        raise OptionError(
            f"--device '{name}' is not a device: give one of {_devices(here)}"
        ) from None
    if device.type != "cpu" and (
        here is None
        or device.type != here.type
        or (device.index or 0) >= torch.accelerator.device_count()
    ):
        raise OptionError(f"--device {name}: this machine has only {_devices(here)}")
    if device.type == "cuda" and not torch.version.hip:
        _check_kernels(device)
    check_precision(mixed_precision, device)
    return device


def check_precision(mixed_precision: str, device: torch.device | None = None) -> None:
    """`OptionError` for an unknown precision, or one that the device lacks."""
    if device is not None and device.type == "cpu" and mixed_precision == "fp16":
        raise OptionError("--mixed-precision fp16 needs a GPU: use bf16 on a CPU")
    if mixed_precision == "bf16" and device is not None and not _has_bfloat16(device):
        raise OptionError("this GPU has no bfloat16 units: use --mixed-precision fp16")
    if mixed_precision not in PRECISIONS:
        raise OptionError(
            f"--mixed-precision can be {', '.join(PRECISIONS)}, not {mixed_precision!r}"
        )


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; an old GPU of NVIDIA emulates it.

    Its convolutions would fail in the first step, or take longer than in float32.
    """
    import torch

    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _check_kernels(device: torch.device) -> None:
    """`OptionError` if the installed PyTorch has no kernels for a GPU of NVIDIA.

    Otherwise the first operation would fail with "no kernel image".
    """
    import torch

    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if built_for and not any(_runs_on(capability, each) for each in built_for):
        raise OptionError(
            f"the installed PyTorch {torch.__version__} has no kernels for GPUs of compute "
            f"capability {capability[0]}.{capability[1]}, only {', '.join(built_for)}: install a "
            "build of PyTorch for this GPU, or give --device cpu"
        )


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """Whether kernels of an architecture, such as `sm_86`, run on GPUs of a capability."""
    kind, _, number = architecture.partition("_")
    major, minor = divmod(int(re.sub(r"\D", "", number) or "0"), 10)
    if kind == "compute":  # The driver compiles it for any later GPU.
        return (major, minor) <= capability
    # Kernels of sm_90a run on that capability alone, of sm_86 on the later ones of the same major.
    return (major, minor) == capability or (
        major == capability[0] and minor <= capability[1] and not number.endswith("a")
    )


def launched() -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes that a launcher started."""
    given = ["RANK" in os.environ, "WORLD_SIZE" in os.environ]
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = 0, 0
    if any(given) != all(given) or not 0 <= rank < world:
        raise GenkitError(
            f"RANK is '{os.environ.get('RANK', '')}' and WORLD_SIZE "
            f"'{os.environ.get('WORLD_SIZE', '')}', which no launcher sets: unset both"
        )
    return rank, world


def local_processes(processes: int = 0) -> int:
    """The number of a launcher's processes on this machine, out of `processes` or of all."""
    # srun alone sets no LOCAL_WORLD_SIZE.
    nodes = _number("SLURM_STEP_NUM_NODES") or _number("SLURM_NNODES") or 1
    return _number("LOCAL_WORLD_SIZE") or -(-(processes or _number("WORLD_SIZE") or 1) // nodes)


def several_machines() -> bool:
    """Whether a launcher's processes run on more machines than this."""
    return _number("WORLD_SIZE") > local_processes()


def _number(variable: str) -> int:
    """An environment variable's value; 0 if it is not set, or not to a number."""
    value = os.environ.get(variable, "").strip()
    return int(value) if value.isdecimal() else 0


def own_device(name: str | None = None, mixed_precision: str = "no") -> torch.device:
    """The device of this process: processes of a launcher share the machine's accelerators."""
    import torch

    device = pick_device(name, mixed_precision)
    if device.type == "cpu" or device.index is not None or launched()[1] == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", launched()[0]))
    return torch.device(device.type, local % torch.accelerator.device_count())


def _devices(here: torch.device | None) -> str:
    """The names of this machine's devices."""
    import torch

    if here is None:
        return "cpu"
    numbers = range(torch.accelerator.device_count())
    return ", ".join(["cpu", *(f"{here.type}:{number}" for number in numbers)])


def mixed(device: torch.device, mixed_precision: str = "no") -> AbstractContextManager[object]:
    """A context for encoder and decoder in a precision; quantizers stay in float32."""
    import torch

    if mixed_precision == "no":
        return nullcontext()
    kind = torch.bfloat16 if mixed_precision == "bf16" else torch.float16
    return torch.autocast(device.type, kind)


def device_text(device: torch.device) -> str:
    """A device as records name it: a GPU's model, or the type of any other device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def precision_text(model: nn.Module, device: torch.device, mixed_precision: str = "no") -> str:
    """The precision as records name it: the weights' dtype and any reduced precision."""
    import torch

    text = str(next(model.parameters()).dtype).removeprefix("torch.")
    if mixed_precision != "no":
        return f"{text}, encoder and decoder in {mixed_precision}"
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return f"{text}, convolutions in tf32"
    return text
