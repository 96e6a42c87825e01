"""Checks of optimizers and learning-rate schedules."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

import genkit.testing.tools as tools
from genkit.checks import finite, want
from genkit.plugin.options import Part
from genkit.testing.device import also
from genkit.testing.tools import call, construct, part, put
from genkit.training.modules import load_optimizer_state

SIGNATURE = "Optimizer(options, module, lr, dtype)"


def check_optimizer(name: str, *, gpu: bool = True, **options: Any) -> None:
    """Check that an optimizer lowers a loss, obeys its learning rate, and resumes to the same bits.

    It must also move weights of any shape, in float32 and bfloat16, and leave frozen parameters and
    those without a gradient as they are. `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("optimizer", name, options)
    _check_learning(chosen)
    _check_resuming(chosen)
    for dtype in (torch.float32, torch.bfloat16):
        _check_shapes(chosen, dtype)
    if gpu:
        also("optimizer", name, **options)


def _fresh(chosen: Part, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    __tracebackhide__ = True
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2))
    module.to(tools.DEVICE)
    return module, construct(chosen, SIGNATURE, module, lr, torch.float32)


def _check_learning(chosen: Part) -> None:
    __tracebackhide__ = True
    module, optimizer = _fresh(chosen, 1e-2)
    want(
        isinstance(optimizer, torch.optim.Optimizer),
        f"it must be a torch.optim.Optimizer, not {type(optimizer).__name__}",
    )
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    missing = [key for key, each in module.named_parameters() if id(each) not in held]
    want(not missing, f"it must hold every trainable parameter of the module; it lacks {missing}")
    # The right learning rate depends on the optimizer.
    rates = 1e-2, 1e-3
    losses = [_steps(*_fresh(chosen, lr), range(30)) for lr in rates]
    want(
        any(each[-1] < each[0] for each in losses),
        "30 steps at a learning rate of "
        + " or ".join(f"{lr} (loss {a[0]} → {a[-1]})" for lr, a in zip(rates, losses, strict=True))
        + " must lower a loss",
    )

    module, optimizer = _fresh(chosen, 1e-2)
    before = [each.detach().clone() for each in module.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _steps(module, optimizer, range(2))
    want(
        all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)),
        "steps with group['lr'] = 0 must not change the weights",
    )


def _check_resuming(chosen: Part) -> None:
    __tracebackhide__ = True
    whole, its = _fresh(chosen, 1e-2)
    _steps(whole, its, range(3))
    resumed, other = _fresh(chosen, 1e-2)
    resumed.load_state_dict(whole.state_dict())
    load_optimizer_state(other, deepcopy(its.state_dict()))
    _steps(whole, its, range(3, 6))
    _steps(resumed, other, range(3, 6))
    want(
        all(map(torch.equal, whole.parameters(), resumed.parameters())),
        "its steps must be the same after load_state_dict(state_dict())",
    )


class _Shapes(nn.Module):
    """Weights of all shapes, a frozen one, and one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.scale = nn.Embedding(10, 6), nn.Parameter(torch.ones(6))
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)
        self.convolution, self.linear = nn.Conv1d(6, 4, 1), nn.Linear(4, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        rows = self.frozen(self.embedding(numbers) * self.scale)
        result: Tensor = self.linear(self.convolution(rows.mT).mean(2))
        return result


def _check_shapes(chosen: Part, dtype: torch.dtype) -> None:
    __tracebackhide__ = True
    torch.manual_seed(0)
    module = _Shapes().to(tools.DEVICE, dtype)
    optimizer = construct(chosen, SIGNATURE, module, 1e-2, dtype)
    before = {key: each.detach().clone() for key, each in module.named_parameters()}
    # Some rows of the embedding never occur, so their gradient is zero.
    numbers = put(torch.arange(20).view(4, 5) % 7)
    for _ in range(3):
        (module(numbers).float() - 1).square().mean().backward()
        said = f"a step with matrices, vectors and an embedding in {dtype}"
        call(said, optimizer.step)
        optimizer.zero_grad()
    for key, each in module.named_parameters():
        finite(f"{key} after steps in {dtype}", each)
        if key.startswith(("frozen", "unused")):
            why = "requires_grad is False" if key.startswith("frozen") else "its grad is None"
            want(torch.equal(each, before[key]), f"a step must not change a weight if {why}")
        elif dtype == torch.float32:
            want(not torch.equal(each, before[key]), f"steps must change every weight, also {key}")


def check_schedule(name: str, **options: Any) -> None:
    """Check that a schedule returns shares of the peak learning rate, from 0 to 1.

    `options` are the component's own.
    """
    __tracebackhide__ = True
    chosen = part("schedule", name, options)
    for steps, warmup in ((100, 10), (1, 0), (0, 0), (5, 50)):
        schedule = construct(chosen, "Schedule(options, steps, warmup)", steps, warmup)
        shares = [schedule(step) for step in range(steps + 1)]
        want(
            all(isinstance(each, float) and 0 <= each <= 1 for each in shares),
            f"it must return floats from 0 to 1 for {steps} steps, not {shares[:5]}",
        )


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    __tracebackhide__ = True
    losses = []
    for number in numbers:
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number % 3))
        x = put(x)
        target: Tensor = x.mean((1, 2, 3))[:, None].expand(-1, 2)
        loss = (module(x) - target).square().mean()
        loss.backward()
        call("a step", optimizer.step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
