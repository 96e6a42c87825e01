"""Contexts that set the precision of operations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Types of devices that have no float64: Apple's GPUs.
WITHOUT_DOUBLES = {"mps"}
_REDUCED = "allow_bf16_reduced_precision_reduction"
_LOCK = threading.Lock()


def finest(device: torch.device) -> torch.dtype:
    """The finest floating dtype of a device."""
    return torch.float32 if device.type in WITHOUT_DOUBLES else torch.float64


def double(values: Tensor) -> Tensor:
    """Values in double precision, so that sums do not depend on the order of their terms.

    They move to the CPU if their device has no double precision.
    """
    return (values if finest(values.device) == torch.float64 else values.cpu()).double()


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 in float32, and of bfloat16 with sums in float32.

    The settings belong to the whole program, so threads take turns.
    """
    matmul = (torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda).matmul
    wanted: dict[str, object] = {"fp32_precision": "ieee"}
    if device.type == "cuda":
        wanted[_REDUCED] = False
    with _LOCK:
        before = {name: getattr(matmul, name) for name in wanted}
        split = getattr(matmul, f"{_REDUCED}_split_k", None)
        if _REDUCED in before and split is not None:  # Newer versions set both at once.
            before[_REDUCED] = before[_REDUCED], split
        for name, value in wanted.items():
            setattr(matmul, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(matmul, name, value)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, also for devices that lack it, such as meta."""
    # Older versions of torch.compile cannot trace `is_autocast_available`.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def float32_by_default() -> Iterator[None]:
    """A context in which new tensors are float32 unless a type is named.

    The default dtype belongs to the whole program; if it is float32 already, nothing is set.
    """
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
