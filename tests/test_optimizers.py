"""Optimizers and schedules pass their contract tests, and broken ones fail them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genkit import Component, NoOptions, testing
from genkit.errors import OptionError
from genkit.plugin.registry import register, registry
from genkit.settings import choose


@pytest.mark.parametrize("optimizer", registry().names("optimizer"))
def test_optimizers(optimizer: str) -> None:
    testing.check_optimizer(optimizer)


def test_betas_are_refused_by_an_optimizer_without_them() -> None:
    module = nn.Linear(2, 2)
    for algorithm in ("sgd", "lamb"):
        plain = choose("optimizer", algorithm).build(module, 0.1, torch.float32)
        assert plain.param_groups[0]["lr"] == 0.1
    betas = {"name": "lamb", "betas": [0.5, 0.9]}
    changed = choose("optimizer", betas).build(module, 0.1, torch.float32)
    assert changed.param_groups[0]["betas"] == (0.5, 0.9)
    with pytest.raises(OptionError, match="'sgd' does not take two betas: leave out --betas"):
        choose("optimizer", {**betas, "name": "sgd"}).build(module, 0.1, torch.float32)


@pytest.mark.parametrize("schedule", registry().names("schedule"))
def test_schedules(schedule: str) -> None:
    testing.check_schedule(schedule)


class Deaf(torch.optim.SGD):
    """An optimizer that ignores the learning rate of its groups."""

    def __init__(self, options: Any, module: torch.nn.Module, lr: float, dtype: Any) -> None:
        super().__init__(module.parameters(), lr)

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["lr"] = 0.01
        super().step(closure)


class Half(Deaf):
    def __init__(self, options: Any, module: torch.nn.Module, lr: float, dtype: Any) -> None:
        torch.optim.SGD.__init__(self, [*module.parameters()][:2], lr)


class Thawing(Deaf):
    """Decays all weights of the module, also the frozen ones."""

    def step(self, closure: Any = None) -> None:
        torch.optim.SGD.step(self, closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.requires_grad == self.trains:
                    weight.data.mul_(1 - group["lr"])

    trains = False


class Decaying(Thawing):
    """Decays all trainable weights, also those without a gradient."""

    trains = True


class Rising(Deaf):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data += group["lr"] * weight.grad


class MatricesOnly(Deaf):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data -= group["lr"] * weight.grad.flatten(1).view_as(weight)


class NoVectors(Deaf):
    """Updates only weights with two or more dimensions."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.ndim > 1:
                    weight.data -= group["lr"] * weight.grad


class RowByRow(Deaf):
    """Divides by zero at a row of an embedding that the batch lacks."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    rows = weight.grad.view(len(weight), -1)
                    update = (rows / rows.norm(dim=1, keepdim=True)).view_as(weight)
                    weight.data -= group["lr"] * update


class Float32Only(Deaf):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data.lerp_(weight.data - weight.grad.float(), group["lr"])


class Schedule:
    share: Any = 1.0

    def __init__(self, options: Any, steps: int, warmup: int) -> None:
        pass

    def __call__(self, step: int) -> float:
        return self.share


@pytest.mark.parametrize(
    ("kind", "component", "message"),
    [
        ("optimizer", Deaf, r"group\['lr'\] = 0 must not change the weights"),
        ("optimizer", Half, "it must hold every trainable parameter"),
        ("optimizer", Rising, "30 steps at a learning rate of .* must lower a loss"),
        ("optimizer", Thawing, "must not change a weight if requires_grad is False"),
        ("optimizer", Decaying, "must not change a weight if its grad is None"),
        ("optimizer", MatricesOnly, "a step must work; it raised IndexError"),
        ("optimizer", NoVectors, "steps must change every weight, also scale"),
        ("optimizer", RowByRow, r"embedding\.weight after steps in torch.float32 must be finite"),
        ("optimizer", Float32Only, r"an embedding in torch\.bfloat16 must work; it raised Runtime"),
        *(
            ("schedule", type("Bad", (Schedule,), {"share": share}), "must return floats from 0 to")
            for share in (-0.1, 1.1, float("nan"), 1)
        ),
    ],
)
def test_a_broken_optimizer_or_schedule_is_found(kind: str, component: Any, message: str) -> None:
    register(Component(kind, "broken", component, NoOptions))
    try:
        with pytest.raises(AssertionError, match=message):
            getattr(testing, f"check_{kind}")("broken")
    finally:
        registry()._components.pop((kind, "broken"))
