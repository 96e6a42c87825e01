"""Checks of optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from genkit.checks import want
from genkit.testing.tools import construct, part
from genkit.training.modules import load_optimizer_state


def check_optimizer(name: str, **options: Any) -> None:
    """Check that an optimizer lowers a loss, obeys its learning rate, and resumes to the same bits.

    `options` are the component's own.
    """
    __tracebackhide__ = True
    chosen = part("optimizer", name, options)

    def fresh(lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2))
        signature = "Optimizer(options, module, lr, dtype)"
        return module, construct(chosen, signature, module, lr, torch.float32)

    module, optimizer = fresh(1e-2)
    want(
        isinstance(optimizer, torch.optim.Optimizer),
        f"it must be a torch.optim.Optimizer, not {type(optimizer).__name__}",
    )
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    missing = [key for key, each in module.named_parameters() if id(each) not in held]
    want(not missing, f"it must hold every trainable parameter of the module; it lacks {missing}")
    losses = _steps(module, optimizer, range(30))
    want(losses[-1] < losses[0], f"30 steps must lower a loss; it went {losses[0]} → {losses[-1]}")

    still, frozen = fresh(1e-2)
    before = [each.detach().clone() for each in still.parameters()]
    for group in frozen.param_groups:
        group["lr"] = 0.0
    _steps(still, frozen, range(2))
    want(
        all(torch.equal(a, b) for a, b in zip(before, still.parameters(), strict=True)),
        "steps with group['lr'] = 0 must not change the weights",
    )

    whole, its = fresh(1e-2)
    _steps(whole, its, range(3))
    resumed, other = fresh(1e-2)
    resumed.load_state_dict(whole.state_dict())
    load_optimizer_state(other, deepcopy(its.state_dict()))
    _steps(whole, its, range(3, 6))
    _steps(resumed, other, range(3, 6))
    want(
        all(map(torch.equal, whole.parameters(), resumed.parameters())),
        "its steps must be the same after load_state_dict(state_dict())",
    )


def check_schedule(name: str, **options: Any) -> None:
    """Check that a schedule returns finite, non-negative fractions of the peak learning rate.

    `options` are the component's own.
    """
    __tracebackhide__ = True
    chosen = part("schedule", name, options)
    for steps, warmup in ((100, 10), (1, 0), (0, 0), (5, 50)):
        schedule = construct(chosen, "Schedule(options, steps, warmup)", steps, warmup)
        shares = [schedule(step) for step in range(steps + 1)]
        want(
            all(isinstance(each, float) and math.isfinite(each) and each >= 0 for each in shares),
            f"it must return floats of 0 or more for {steps} steps, not {shares[:5]}",
        )


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number % 3))
        target: Tensor = x.mean((1, 2, 3))[:, None].expand(-1, 2)
        loss = (module(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
