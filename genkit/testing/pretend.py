"""A pretend GPU: a device whose tensors lie on the CPU and behave as if they did not.

`start` makes this process believe in an accelerator named `pretend`, for good: use a process of its
own. Operations that mix its tensors with the CPU's fail as they would on a GPU. The device
counts operations, float64 results, and the waits of the host, each with the line that asked. It
says nothing about a GPU's numerics, speed or missing kernels.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "pretend"
# Packages whose lines are never to blame.
_OTHERS = ("torch", "accelerate", "einops", "einx", "genkit.testing.pretend", "genkit.ops.host")
_aten: Any = torch.ops.aten
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_NO_WORK = (_aten._unsafe_view, _aten.detach, _aten.alias, _aten.lift_fresh, _aten._reshape_alias)
# Operations whose result the host needs, or whose size depends on values, with their waits.
_WAITS = {
    _aten._local_scalar_dense: 1,
    _aten.nonzero: 1,
    _aten.masked_select: 1,
    _aten.equal: 1,
    _aten.bincount: 2,
    _aten.unique_dim: 1,
    _aten.unique_consecutive: 1,
    _aten._unique2: 1,
}


class Mixed(RuntimeError):
    """An operation took tensors of the device and of the CPU."""


def _dispatched(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return DEVICE.run(function, args, kwargs or {})


def _shown(tensor: _Hidden, **_: Any) -> str:
    return f"{tensor.held!r} on {NAME}"


class _Hidden(Tensor):
    """A tensor of the device; `held` is the CPU's, which nothing but the device can see."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Hidden:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl
    __torch_dispatch__: Any = classmethod(_dispatched)
    __repr__: Any = _shown

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __format__(self, form: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), form)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made: Any = _Hidden(self.held.clone())
            if isinstance(self, nn.Parameter):
                made = nn.Parameter(made, self.requires_grad)
            made.requires_grad_(self.requires_grad)
            vars(made).update({k: v for k, v in vars(self).items() if k != "held"})
            memo[id(self)] = made
        return memo[id(self)]


class Device:
    """The device, and what it has been asked for since `forget`.

    `waits` and `doubles` count by line of code, and `operations` by name the operations that would
    launch a kernel. With `has_doubles` False it refuses float64, as Apple's GPUs do.
    """

    def __init__(self) -> None:
        self.has_doubles = True
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()

    def forget(self) -> None:
        """Count from 0 again."""
        for each in (self.waits, self.operations, self.doubles):
            each.clear()

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Compute on the CPU what was asked of the device, and hide the result."""
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        mine = [each for each in tensors if isinstance(each, _Hidden)]
        device = kwargs.get("device")
        here = _is_here(device) if device is not None else bool(mine)
        if not here and not mine:
            return function(*args, **kwargs)
        kind = function._overloadpacket
        _check_mixing(function, kind, args, tensors, mine)
        self._count(function, kind, args, kwargs, mine, here)
        plain = tree_map_only(_Hidden, lambda each: each.held, (args, kwargs))
        if device is not None:
            plain[1]["device"] = torch.device("cpu") if here else device
        result = function(*plain[0], **plain[1])
        if not here or kind is _aten._local_scalar_dense:
            return result
        if any(t.dtype == torch.float64 for t in tree_leaves(result) if isinstance(t, Tensor)):
            self.doubles[line()] += 1
            if not self.has_doubles:
                raise TypeError("this device has no float64")
        result = tree_map_only(
            Tensor, lambda t: t if isinstance(t, _Hidden) else _Hidden(t), result
        )
        return return_and_correct_aliasing(function, args, kwargs, result)

    def _count(
        self, function: Any, kind: Any, args: Any, kwargs: Any, mine: list[_Hidden], here: bool
    ) -> None:
        if not (function.is_view or kind in _NO_WORK or "empty" in function._schema.name):
            self.operations[function._schema.name.removeprefix("aten::")] += 1
        waits = _WAITS.get(kind, 0)
        if kind in _INDEXED:
            # A mask is turned into places, and places from the CPU are copied.
            places = [each for each in args[1] if isinstance(each, Tensor)]
            waits = sum(x.dtype == torch.bool or not isinstance(x, _Hidden) for x in places)
        elif kind is _aten.repeat_interleave:
            waits = int(kwargs.get("output_size") is None)
        elif kind is _aten.copy_:
            across = isinstance(args[0], _Hidden) != isinstance(args[1], _Hidden)
            waits = int(across and not (kwargs.get("non_blocking") or True in args[2:]))
        elif kind is _aten._to_copy and here != bool(mine):
            waits = int(not kwargs.get("non_blocking"))
        if waits:
            self.waits[line()] += waits


DEVICE = Device()


class _Asked(TorchDispatchMode):
    """Hands the device what is asked for without a tensor of its own, such as a new one."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return DEVICE.run(function, args, kwargs or {})


def _asked() -> Any:
    mode: Any = _Asked
    return mode()


class _Thread(threading.Thread):
    """A thread that believes in the device too."""

    def run(self) -> None:
        with _asked():
            super().run()


def _check_mixing(
    function: Any, kind: Any, args: Any, tensors: list[Tensor], mine: list[_Hidden]
) -> None:
    """`Mixed` if an operation takes tensors of both devices, unless it may."""
    others = [each for each in tensors if not isinstance(each, _Hidden) and not each.is_meta]
    if not mine or not others or kind in (_aten._to_copy, _aten.copy_, _aten._foreach_copy_):
        return
    first_is_mine = isinstance(args[0], _Hidden)
    if kind in _INDEXED and first_is_mine:
        return
    scalars = all(each.ndim == 0 for each in others) and torch.Tag.pointwise in function.tags
    if scalars and (first_is_mine or not function._schema.is_mutable):
        return
    shapes = ", ".join(str(list(each.shape)) for each in others)
    raise Mixed(
        f"{function._schema.name.removeprefix('aten::')} takes tensors on a GPU and on the CPU "
        f"(of shape {shapes}) in {line()}"
    )


def line() -> str:
    """The innermost line of code under way that is not PyTorch's or this module's own."""
    frame = sys._getframe(1)
    while frame.f_back and _is_other(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _is_other(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in _OTHERS)


def _is_here(device: Any) -> bool:
    return torch.device(device).type == NAME


class _Backend:
    """The answers of an accelerator's module, such as `torch.cuda`."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    manual_seed = manual_seed_all

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


def lacking() -> str:
    """A reason why this PyTorch cannot pretend, or nothing."""
    parts = {
        "_setup_privateuseone_for_python_backend": registration,
        "_foreach_supported_types": _foreach_utils,
        "_set_only_lift_cpu_tensors": torch._C,
    }
    missing = [name for name, where in parts.items() if not hasattr(where, name)]
    return f"PyTorch {torch.__version__} lacks {missing[0]}" if missing else ""


def start() -> Device:
    """Make this process believe in the device, and return it."""
    register: Callable[..., Any] = registration._setup_privateuseone_for_python_backend
    register(NAME, backend_module=_Backend())
    # Otherwise `torch.tensor(…, device=…)` bypasses the device, and `Module.to` makes new
    # parameters instead of moving them.
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    kinds: list[Any] = _foreach_utils._foreach_supported_types
    kinds.append(_Hidden)
    # Autocast does nothing on the device; the library lives as long as the process.
    _LIBRARIES.append(torch.library.Library("_", "IMPL"))
    _LIBRARIES[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    F.scaled_dot_product_attention = _attention
    vars(threading)["Thread"] = _Thread
    _asked().__enter__()
    return DEVICE


_LIBRARIES: list[torch.library.Library] = []


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """The one implementation of attention that needs no kernel of its own."""
    found: Tensor = _aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
    return found
