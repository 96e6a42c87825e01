"""torch.compile for nets in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from genkit.errors import OptionError

# A backend of torch.compile. Tests choose one that needs no compiler.
BACKEND = "inductor"


def compile_nets(nets: Iterable[nn.Module], device: torch.device) -> None:
    """Compile nets in place: names in the state stay, and copies of the nets are not compiled.

    `OptionError` if this machine cannot compile for the device.
    """
    # The compiler looks at its inputs in a way that PyTorch warns of.
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
    check_compiler(device)
    # The adaptive weight takes two gradients through one forward pass, and a compiled backward pass
    # would overwrite what the second one needs.
    torch._functorch.config.donated_buffer = False
    for net in nets:
        net.compile(backend=BACKEND)


def eager(compiled: bool) -> AbstractContextManager[object]:
    """A context that runs nets as they were written, also if they are `compiled`.

    For validation, whose other shapes and modes would be compiled too, and for second derivatives,
    which compiled nets do not have.
    """
    # Without compiled nets the compiler is not even imported.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def check_compiler(device: torch.device) -> None:
    """`OptionError` if this machine cannot compile for the device."""
    try:
        torch.compile(_probe, backend=BACKEND)(torch.zeros(8, device=device))
    except Exception as error:  # Compilers and drivers fail in many ways.
        cause = getattr(error, "inner_exception", error)
        reason = next(
            (line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__
        )
        needed = "Triton" if device.type == "cuda" else "a C++ compiler, such as g++"
        raise OptionError(
            f"--compile does not work on this machine ({reason}): torch.compile needs {needed} "
            f"for {device.type}; install it, or leave --compile out"
        ) from error


def _probe(values: torch.Tensor) -> torch.Tensor:
    return (values + 1).relu()
