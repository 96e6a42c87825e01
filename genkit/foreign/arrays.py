"""NumPy's arrays and scalars in a pickle, rebuilt without NumPy's own functions for that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkit.errors import CheckpointError
from genkit.foreign.inert import Inert

_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class Kind:
    """A NumPy dtype of whole numbers, floats or truth values."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        """Take the byte order from the state of a pickled dtype."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = state[1]

    @property
    def size(self) -> int:
        """The bytes of a value."""
        return int(self.code[1:])

    def array(self, data: bytes) -> np.ndarray[Any, Any]:
        """The values of `data` in this machine's byte order."""
        values = np.frombuffer(data, np.dtype(self.order + self.code))
        return values.astype(values.dtype.newbyteorder("="))


class Array:
    """A NumPy array as a pickle describes it; nothing of it is checked yet."""

    __slots__ = ("data", "fortran", "kind", "shape")

    def __init__(
        self, kind: Any = None, shape: Any = (), fortran: Any = False, data: Any = b""
    ) -> None:
        self.kind, self.shape, self.fortran, self.data = kind, shape, fortran, data

    def build(self, state: Any) -> None:
        """Take over the state of a pickled array: version, shape, dtype, order, bytes."""
        if isinstance(state, tuple) and len(state) == 5:
            _, self.shape, self.kind, self.fortran, self.data = state

    def tensor(self, name: str) -> Tensor | None:
        """The array as a tensor; None if its values are not numbers."""
        if not isinstance(self.kind, Kind):
            return None
        data = _bytes(self.data)
        sound = (
            data is not None
            and isinstance(self.shape, tuple)
            and len(self.shape) <= 32
            and all(type(side) is int and 0 <= side < 2**62 for side in self.shape)
            and math.prod(self.shape) * self.kind.size == len(data)
            and math.prod(filter(None, self.shape)) < 2**62
        )
        if not sound or data is None:
            raise CheckpointError(
                f"its array '{name}' has another size than its values; copy or download it again"
            )
        values = self.kind.array(data)
        return torch.from_numpy(values.reshape(self.shape, order="F" if self.fortran else "C"))


def kind(code: Any, align: Any = None, copy: Any = None) -> Kind | Inert:
    """`numpy.dtype`."""
    return Kind(code) if isinstance(code, str) and code in _CODES else Inert("numpy.dtype")


def scalar(of: Any, data: Any = None) -> Any:
    """`numpy.core.multiarray.scalar`: a number, or an inert object for other values."""
    if not isinstance(of, Kind) or not isinstance(data, bytes | str) or len(data) != of.size:
        return Inert("numpy.scalar")
    value = _bytes(data)
    return Inert("numpy.scalar") if value is None else of.array(value)[0].item()


def reconstruct(of: Any, shape: Any, code: Any) -> Array:
    """`numpy.core.multiarray._reconstruct`: an array that its state fills."""
    return Array()


def from_buffer(data: Any, of: Any, shape: Any, order: Any, axis: Any = None) -> Array | Inert:
    """`numpy.core.numeric._frombuffer`."""
    if axis is not None:  # An array whose axes are permuted.
        return Inert("numpy.ndarray")
    return Array(of, shape, order == "F", data)


def _bytes(data: Any) -> bytes | None:
    if isinstance(data, bytearray):
        return bytes(data)
    if isinstance(data, str):  # Python 2 wrote bytes as text.
        try:
            return data.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return data if isinstance(data, bytes) else None
