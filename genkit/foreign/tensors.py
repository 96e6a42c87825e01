"""Tensors from a file's storages, each checked against the bytes that the file has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genkit.errors import CheckpointError
from genkit.foreign.inert import Refused, Storage, Stored

_LARGEST = 2**62
# Floats of any size, whole numbers and truth values.
_READ = {
    *(dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)),
} & {
    getattr(torch, name, None)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


def readable(dtype: Any) -> bool:
    """Whether tensors of this type are read."""
    return isinstance(dtype, torch.dtype) and dtype in _READ


def refusal(dtype: Any) -> str:
    """The phrase that refuses a tensor of this type."""
    if isinstance(dtype, torch.dtype) and dtype.is_complex:
        return "is complex; save its real and imaginary parts"
    if str(dtype).startswith(("torch.q", "torch.bits")):
        return "is quantized; save it as floats"
    return f"has values of the type {str(dtype).removeprefix('torch.')}; save it as floats"


def allocated(count: int) -> Tensor:
    """Memory for `count` bytes."""
    try:
        return torch.empty(count, dtype=torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(
            f"a storage of it takes {count} bytes, more memory than is free; read it on a machine "
            "with more"
        ) from error


class Storages:
    """The storages of a file: `load` returns the bytes of a key, whose number it checks.

    `swapped` says that their byte order is not this machine's.
    """

    def __init__(self, load: Callable[[str, int], Tensor], swapped: bool = False) -> None:
        self._load, self._swapped = load, swapped
        self._loaded: dict[tuple[str, int], Tensor] = {}

    def tensor(self, stored: Stored, name: str) -> Tensor:
        """The tensor that a pickle describes, as a view of its storage."""
        _check(stored, name)
        storage, dtype = stored.storage, stored.dtype
        size = storage.dtype.itemsize if storage.dtype else 1
        values = self._bytes(storage.key, storage.count * size, dtype.itemsize)
        start = storage.start * size // dtype.itemsize
        return torch.empty(0, dtype=dtype).set_(
            values.untyped_storage(), start + stored.offset, stored.size, stored.stride
        )

    def _bytes(self, key: str, count: int, item: int) -> Tensor:
        """The bytes of a storage whose values have `item` bytes each."""
        width = item if self._swapped else 1
        values = self._loaded.get((key, width))
        if values is None:
            values = self._load(key, count)
            if width > 1 and count % width == 0:
                values = values.view(-1, width).flip(1).reshape(-1)
            self._loaded[key, width] = values
        elif len(values) != count:
            raise CheckpointError(
                f"it gives the storage '{key}' two sizes; copy or download it again"
            )
        return values


def persistent(reference: Any) -> Any:
    """The storage that a pickle refers to, or the class whose source a file of old keeps."""
    if not isinstance(reference, tuple) or not reference:
        raise ValueError("it refers to something other than a storage")
    if reference[0] == "module" and len(reference) == 4:
        return reference[1]
    if reference[0] != "storage" or len(reference) not in (5, 6):
        raise ValueError("it refers to something other than a storage")
    dtype = getattr(reference[1], "dtype", None)
    key, count, view = reference[2], reference[4], reference[5] if len(reference) == 6 else None
    start, seen = (0, count) if view is None else (view[1], view[2])
    if not (isinstance(key, str) and all(_whole(each) for each in (count, start, seen))):
        raise ValueError("it refers to a storage without a name or size")
    if start + seen > count:
        raise ValueError("it refers to more than a storage holds")
    return Storage(key, dtype, count, start)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _check(stored: Stored, name: str) -> None:
    """`CheckpointError` if a tensor is of a kind that is not read, or exceeds its storage."""
    storage, dtype = stored.storage, stored.dtype
    if isinstance(storage, Refused):
        raise CheckpointError(f"its tensor '{name}' {storage.reason}")
    if not isinstance(storage, Storage):
        raise CheckpointError(f"its tensor '{name}' has no storage; copy or download it again")
    if not readable(dtype):
        raise CheckpointError(f"its tensor '{name}' {refusal(dtype)}")
    size, stride = stored.size, stored.stride
    sound = (
        isinstance(size, tuple | list)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride) <= 64
        and all(map(_whole, (*size, *stride, stored.offset)))
        and math.prod(filter(None, size)) < _LARGEST
        and storage.dtype in (None, dtype)
    )
    if sound:
        item = storage.dtype.itemsize if storage.dtype else 1
        first = storage.start * item + stored.offset * dtype.itemsize
        steps = sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        end = first + (steps + 1) * dtype.itemsize if 0 not in size else first
        sound = storage.start * item % dtype.itemsize == 0
        sound &= end <= storage.count * item < _LARGEST and max(stride, default=0) < _LARGEST // 16
    if not sound:
        raise CheckpointError(
            f"its tensor '{name}' reaches beyond its storage; copy or download it again"
        )
