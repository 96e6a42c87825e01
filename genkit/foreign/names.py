"""The answers to a pickle's names: genkit's own functions for tensors, or inert records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genkit.errors import CheckpointError
from genkit.foreign import arrays
from genkit.foreign.inert import Function, Inert, Name, Refused, StorageType, Stored

# The bytes that one file may have copied from one object to another.
COPIES = 2**28
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QUInt8Storage": torch.quint8,
    "QInt8Storage": torch.qint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": None,
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_PLAIN = {
    *("torch.Tensor", "torch._tensor.Tensor"),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
}
_REFUSED = {
    "_rebuild_qtensor": "is quantized; save it as floats",
    "_rebuild_sparse_tensor": "is sparse; save it as a dense tensor",
    "_rebuild_sparse_csr_tensor": "is sparse; save it as a dense tensor",
    "_rebuild_nested_tensor": "is nested; save its parts as dense tensors",
    "_rebuild_meta_tensor_no_storage": "lies on the meta device, without data; save the real one",
    "_rebuild_wrapper_subclass": "wraps other tensors in a class; save it as a plain tensor",
    "_load_from_bytes": "was pickled without torch.save; save it with torch.save",
}


class Names:
    """Answers the names of one file, which may have `copies` more bytes copied."""

    def __init__(self) -> None:
        self.copies = COPIES
        functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self._ordered,
            "_codecs.encode": self._encode,
            "torch.Size": _same,
            "__builtin__.bytes": lambda: b"",
            "builtins.set": _same,
            "__builtin__.set": _same,
            "torch.jit._pickle.build_intlist": _same,
            "torch.jit._pickle.build_tensorlist": _same,
            "torch.jit._pickle.build_doublelist": _same,
            "torch.jit._pickle.build_boollist": _same,
            "torch.jit._pickle.restore_type_tag": lambda value, kind: value,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor_v2,
            "torch._utils._rebuild_tensor_v3": _tensor_v3,
            "torch._utils._rebuild_parameter": lambda data, gradient, hooks: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, gradient, hooks, state: data,
            "torch._tensor._rebuild_from_type_v2": _of_type,
            "numpy.dtype": arrays.kind,
        }
        for core in ("numpy.core", "numpy._core"):
            functions[f"{core}.multiarray.scalar"] = arrays.scalar
            functions[f"{core}.multiarray._reconstruct"] = arrays.reconstruct
            functions[f"{core}.numeric._frombuffer"] = arrays.from_buffer
        self._functions = {name: Function(call) for name, call in functions.items()}

    def find(self, module: Any, name: Any) -> Any:
        """The record or function in place of `module.name`; nothing is ever imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is not a text")
        full = f"{module}.{name}"
        if full in self._functions:
            return self._functions[full]
        if module.startswith("torch"):
            if name in _STORAGES:
                return StorageType(_STORAGES[name])
            if module == "torch" and name in _DTYPES:
                return _DTYPES[name]
            if name in _REFUSED:
                return Refused(_REFUSED[name])
            if name.startswith("_rebuild"):
                return Refused("is of a kind that genkit does not know; save it as a plain tensor")
        return Name(full)

    def _spend(self, count: int) -> None:
        self.copies -= count
        if self.copies < 0:
            raise CheckpointError(
                f"it copies more than {COPIES} bytes, so it is no usual checkpoint; convert it to "
                "safetensors with the project that wrote it"
            )

    def _ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        self._spend(256 * len(pairs))
        return {key_of(key): value for key, value in pairs}

    def _encode(self, text: Any, encoding: Any = None) -> Any:
        self._spend(len(text))
        return text.encode("latin-1") if isinstance(text, str) else text


def key_of(key: Any) -> Any:
    """A key of a dict for one of a pickle: a text or number as it is, else one without meaning.

    Tuples, and whole numbers of over 64 bits, could be chosen to share one hash, and filling a dict
    with them would take hours.
    """
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**63 else Inert("key")
    return key if key is None or isinstance(key, str | bytes | float | Name) else Inert("key")


def call(function: Any, args: Any) -> Any:
    """The result of a call in a pickle: one of genkit's own functions, or a record of the call."""
    if not isinstance(args, tuple):
        raise ValueError("the arguments of a call are not a tuple")
    if isinstance(function, Function):
        return function.call(*args)
    if isinstance(function, Refused):
        return function
    if isinstance(function, Name | Inert):
        return Inert(function.name, args)
    raise ValueError("it calls a value")


def _same(value: Any = ()) -> Any:
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Stored:
    return Stored(storage, offset, size, stride, getattr(storage, "dtype", None))


def _tensor_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any = None,
    hooks: Any = None,
    flags: Any = None,
) -> Stored | Refused:
    if flags:
        return Refused("is a conjugate or negative view; save a copy of it")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    dtype: Any,
    flags: Any = None,
) -> Stored | Refused:
    if flags:
        return Refused("is a conjugate or negative view; save a copy of it")
    return Stored(storage, offset, size, stride, dtype)


def _of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, which are left out, or one of a class of somebody's own."""
    known = isinstance(kind, Name) and kind.name in _PLAIN
    if known and isinstance(function, Function) and function.call is not _of_type:
        return call(function, args)
    if isinstance(function, Refused):
        return function
    return Refused("is of a class of its own; save it as a plain tensor")
