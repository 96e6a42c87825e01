"""What the checks of all kinds share.

A function that sets `__tracebackhide__` stays out of pytest's report, which then shows the
author's own line and the message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genkit.checkpoint.model import distinct_state
from genkit.checks import finite, shape, want
from genkit.errors import MissingComponent, PluginError
from genkit.plugin.options import Part
from genkit.plugin.registry import registry
from genkit.settings import choose


def part(kind: str, name: str, options: dict[str, Any]) -> Part:
    """The component with its options, once its class can be imported."""
    __tracebackhide__ = True
    try:
        component = registry().component(kind, name)
        component.load()
    except MissingComponent as error:
        raise AssertionError(
            f"{error}\nThe tests need the package that brings it installed, as `pip install -e .` "
            "does, with an entry point in the group genkit.plugins."
        ) from None
    except PluginError as error:
        # What the author's own code raised, without our way there.
        raise AssertionError(str(error)) from error.__cause__
    return choose(kind, {"name": name, **options})


def construct(part: Part, signature: str, *args: Any) -> Any:
    """An instance of the part's class, which must take what `signature` shows."""
    __tracebackhide__ = True
    try:
        return part.build(*args)
    except PluginError as error:
        raise AssertionError(f"{error}; it must be built as {signature}") from error.__cause__


@contextmanager
def met(rank: int, folder: str, processes: int) -> Iterator[None]:
    """Be one of several processes that compute together, which meet in a file in `folder`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
        # One that waits for another in vain shall say so.
        timeout=timedelta(minutes=1),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_failure(folder: Path, settings: str, processes: int) -> str | None:
    """Train in several processes; the last line of the one that fails first, if one does.

    They are commands of their own. Processes that Python spawns would run the author's script
    again, and a notebook has none.
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
    """The same for a kind whose classes are modules."""
    __tracebackhide__ = True
    module = construct(part, signature, *args)
    if not isinstance(module, nn.Module):
        raise AssertionError(f"the class must be a torch.nn.Module, not {type(module).__name__}")
    for part_of in module.modules():
        for key, value in vars(part_of).items():
            want(
                not isinstance(value, Tensor),
                f"{type(part_of).__name__}.{key} is a tensor that neither saving nor a GPU finds: "
                f"make it a parameter, or register_buffer('{key}', …)",
            )
    return module


def call(said: str, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`; what it raises follows a message that says what was asked of it."""
    __tracebackhide__ = True
    try:
        return function(*args)
    except Exception as error:  # Whatever an author's code does.
        raise AssertionError(f"{said} must work; it raised {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in words."""
    return f"{type(error).__name__}: {error}"


def has(thing: object, name: str, meaning: str) -> Any:
    """The attribute of that name."""
    __tracebackhide__ = True
    want(hasattr(thing, name), f"{type(thing).__name__} must have {name}, {meaning}")
    return getattr(thing, name)


def close(what: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
    """Equal but for rounding."""
    __tracebackhide__ = True
    shape(what, found, wanted.shape)
    want(found.dtype == wanted.dtype, f"{what} must be {wanted.dtype}, not {found.dtype}")
    want(
        torch.allclose(found, wanted, atol=1e-5, rtol=1e-4),
        f"{what} must equal {meaning}; they differ by up to {(found - wanted).abs().max():.3g}",
    )


def reach(result: Tensor, **given: Tensor) -> None:
    """A gradient from `result` to each of the tensors, named by what they are."""
    __tracebackhide__ = True
    if result.requires_grad:
        call("the backward pass", lambda: result.backward(retain_graph=True))
    for name, tensor in given.items():
        what = name.replace("_", " ")
        want(
            tensor.grad is not None and bool(tensor.grad.any()),
            f"a gradient must reach the {what}: nothing on the way from them may be detached, "
            "rounded without a way round, or computed under torch.no_grad",
        )
        finite(f"the gradient of the {what}", tensor.grad)


def check_eval(first: nn.Module, second: nn.Module, *args: Any) -> None:
    """Two instances in eval mode: nothing given is changed, and the same comes of the same.

    It comes in bfloat16 too, and of the second instance once it has the first one's saved state.
    """
    __tracebackhide__ = True
    given = list(_tensors(args))

    def again(module: nn.Module) -> Any:
        # Lists of its own: one that takes tensors out of them must not take them out of ours.
        return module(*(list(each) if isinstance(each, list) else each for each in args))

    before = [each.detach().clone() for each in given]
    first.eval()
    with torch.no_grad():
        found = list(_tensors(call("forward in eval mode", again, first)))
        want(
            _same(before, given),
            "forward must not change the tensors that it is given: others use them too, so no "
            "operation on them may be in place",
        )
        want(
            _same(found, _tensors(again(first))),
            "in eval mode the same inputs must give the same outputs: nothing may be random then, "
            "nor remembered from one call to the next",
        )
        with torch.autocast("cpu", torch.bfloat16):
            call("forward in a bf16 run (under torch.autocast)", again, first)
    check_reload(first, second, lambda module: list(_tensors(again(module))))


def check_reload(
    module: nn.Module, other: nn.Module, result: Callable[[nn.Module], list[Tensor]]
) -> None:
    """A second instance with the first one's saved state must do the same in eval mode."""
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        state = distinct_state(module)
        save_file({name: value.contiguous() for name, value in state.items()}, file)
        want(
            state.keys() == distinct_state(other).keys(),
            "a second instance with the same options must have tensors of the same names",
        )
        call(
            "loading what was saved into a second instance",
            lambda: other.load_state_dict(load_file(file), strict=False),
        )
    with torch.no_grad():
        want(
            _same(result(module.eval()), result(other.eval())),
            "what is saved and loaded must do the same: every tensor that the results depend on "
            "must be a parameter or a buffer",
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
