"""Contexts that set the precision of operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


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
