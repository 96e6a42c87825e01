"""Functions that the checks of all kinds share.

pytest hides functions that set `__tracebackhide__`, so that its report shows the author's own line
and the message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # Before a group exists: genkit.distributed says why.
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genkit.checkpoint.model import distinct_state
from genkit.checks import finite, shape, want
from genkit.errors import MissingComponent, PluginError
from genkit.plugin.installing import to_install
from genkit.plugin.names import nearest
from genkit.plugin.options import Part
from genkit.plugin.registry import GROUP, registry
from genkit.settings import choose

# The device of the checks in this process.
DEVICE = torch.device("cpu")


def part(kind: str, name: str, options: dict[str, Any]) -> Part:
    """The component with its options, after checking that its class can be imported."""
    __tracebackhide__ = True
    try:
        component = registry().component(kind, name)
        component.load()
    except MissingComponent as error:
        raise AssertionError(
            f"{error}\nInstall the package that contains it, for example with "
            f"`{to_install('-e', '.')}`; it needs an entry point in the group {GROUP}."
            f"{_misspelt_group()}"
        ) from None
    except PluginError as error:
        # Raise from the author's own error: the frames of this package would only distract.
        raise AssertionError(str(error)) from error.__cause__
    return choose(kind, {"name": name, **options})


def _misspelt_group() -> str:
    """A sentence on an installed entry point whose group may be meant to be ours."""
    points = metadata.entry_points()
    for group in sorted(points.groups):
        if group != GROUP and nearest(group, [GROUP]):
            (first, *_) = points.select(group=group)
            return f" The entry point '{first.name}' is in the group '{group}': write {GROUP}."
    return ""


def construct(part: Part, signature: str, *args: Any) -> Any:
    """An instance of the part's class, which must accept the arguments in `signature`."""
    __tracebackhide__ = True
    try:
        return part.build(*args)
    except PluginError as error:
        raise AssertionError(f"{error}; it must be built as {signature}") from error.__cause__


@contextmanager
def met(rank: int, folder: str, processes: int) -> Iterator[None]:
    """Join a group of processes that compute together; they meet through a file in `folder`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
        # Report a deadlock after a minute.
        timeout=timedelta(minutes=1),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_failure(folder: Path, settings: str, processes: int) -> str | None:
    """Train in several processes; returns the last error line of the first that fails, or None.

    Each process is a separate command: multiprocessing would run the author's script again, and a
    notebook has no script.
    """
    command = [sys.executable, "-m", "genkit.testing.process", str(folder), settings]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{n}.log").open("w+")) for n in range(processes)]
        ranks = [
            subprocess.Popen([*command, str(processes), str(rank)], env=environment, stderr=log)
            for rank, log in enumerate(logs)
        ]
        for rank in ranks:
            stack.callback(rank.wait)
            stack.callback(rank.kill)
        while any(rank.poll() is None for rank in ranks) and not any(r.returncode for r in ranks):
            time.sleep(0.05)
        for rank, log in zip(ranks, logs, strict=True):
            if rank.returncode:
                log.seek(0)
                return ([line for line in log.read().splitlines() if line.strip()] or ["nothing"])[
                    -1
                ]
    return None


def build(part: Part, signature: str, *args: Any) -> nn.Module:
    """Like `construct`, for a kind whose classes are modules."""
    __tracebackhide__ = True
    module = construct(part, signature, *args)
    if not isinstance(module, nn.Module):
        raise AssertionError(f"the class must be a torch.nn.Module, not {type(module).__name__}")
    for part_of in module.modules():
        for key, value in vars(part_of).items():
            want(
                not isinstance(value, Tensor),
                f"{type(part_of).__name__}.{key} is a tensor that is neither saved nor moved to "
                f"a GPU: make it a parameter, or register_buffer('{key}', …)",
            )
    return module.to(DEVICE)


def put(tensor: Tensor) -> Tensor:
    """A tensor on the device of the checks."""
    return tensor.to(DEVICE)


def halved() -> AbstractContextManager[object]:
    """Autocast to bfloat16, as in a bf16 run."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def call(said: str, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`; if it raises, an `AssertionError` says which call must work."""
    __tracebackhide__ = True
    try:
        return function(*args)
    except Exception as error:  # An author's code can raise anything.
        raise AssertionError(f"{said} must work; it raised {described(error)}") from error


def described(error: BaseException) -> str:
    """An exception as text."""
    return f"{type(error).__name__}: {error}"


def has(thing: object, name: str, meaning: str) -> Any:
    """An attribute, which must exist."""
    __tracebackhide__ = True
    want(hasattr(thing, name), f"{type(thing).__name__} must have {name}, {meaning}")
    return getattr(thing, name)


def close(what: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
    """Check that two tensors are equal except for rounding."""
    __tracebackhide__ = True
    shape(what, found, wanted.shape)
    want(found.dtype == wanted.dtype, f"{what} must be {wanted.dtype}, not {found.dtype}")
    off = float((found - wanted).abs().max())
    want(
        torch.allclose(found, wanted, atol=1e-5, rtol=1e-4),
        f"{what} must equal {meaning}; they differ by up to {off:.3g}",
    )


def reach(result: Tensor, **given: Tensor) -> None:
    """Check that a gradient of `result` reaches each of the tensors, which are given by name."""
    __tracebackhide__ = True
    if result.requires_grad:
        call("the backward pass", lambda: result.backward(retain_graph=True))
    for name, tensor in given.items():
        what = name.replace("_", " ")
        want(
            tensor.grad is not None and bool(tensor.grad.any()),
            f"a gradient must reach the {what}: nothing on the way from them may be detached, "
            "rounded without a straight-through estimator, or computed under torch.no_grad",
        )
        finite(f"the gradient of the {what}", tensor.grad)


def check_eval(first: nn.Module, second: nn.Module, *args: Any) -> None:
    """Check two instances in eval mode: inputs are not changed, and outputs are repeatable.

    A forward pass in bfloat16 must work, and the second instance must give the same outputs after
    loading the first one's saved state.
    """
    __tracebackhide__ = True
    given = list(_tensors(args))

    def again(module: nn.Module) -> Any:
        # Pass copies of lists: a module may remove tensors from them.
        return module(*(list(each) if isinstance(each, list) else each for each in args))

    before = [each.detach().clone() for each in given]
    first.eval()
    with torch.no_grad():
        found = list(_tensors(call("forward in eval mode", again, first)))
        want(
            _same(before, given),
            "forward must not change its input tensors, which others use too: do not use in-place "
            "operations on them",
        )
        want(
            _same(found, _tensors(again(first))),
            "in eval mode the same inputs must give the same outputs: nothing may be random or "
            "carried over from one call to the next",
        )
        with halved():
            call("forward in a bf16 run (under torch.autocast)", again, first)
    check_reload(first, second, lambda module: list(_tensors(again(module))))


def check_reload(
    module: nn.Module, other: nn.Module, result: Callable[[nn.Module], list[Tensor]]
) -> None:
    """Check that a second instance with the first one's saved state gives the same results."""
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        state = distinct_state(module)
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, file)
        want(
            state.keys() == distinct_state(other).keys(),
            "a second instance with the same options must have tensors with the same names",
        )
        call(
            "loading the saved state into a second instance",
            lambda: other.load_state_dict(load_file(file), strict=False),
        )
    with torch.no_grad():
        want(
            _same(result(module.eval()), result(other.eval())),
            "a module must give the same results after saving and loading: every tensor that they "
            "depend on must be a parameter or a buffer",
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _same(first: list[Tensor], second: Iterator[Tensor] | list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
