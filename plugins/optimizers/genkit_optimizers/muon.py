"""Muon, an optimizer with orthogonalized momentum for weight matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, overload

import torch
from torch import Tensor, nn

from genkit.distributed import split_like, whole
from genkit_optimizers import MuonOptions
from genkit_optimizers.base import Optimizer


def muon(options: MuonOptions, module: nn.Module, lr: float, dtype: torch.dtype) -> Muon:
    """Muon over the module's trainable parameters, with iterations computed in `dtype`."""
    for each in module.modules():
        # The rows of an embedding, such as codes, are separate vectors; Muon is for matrices.
        if isinstance(each, nn.Embedding | nn.EmbeddingBag):
            each.weight.by_adam = True  # type: ignore[attr-defined]
    beta1, beta2 = options.betas
    return Muon(
        [each for each in module.parameters() if each.requires_grad],
        lr,
        betas=(beta1, beta2),
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        dtype=dtype,
    )


# A parameter and its gradient.
Pair = tuple[nn.Parameter, Tensor]
# Coefficients of the quintic Newton-Schulz iteration; five rounds bring singular values near 1
# (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(Optimizer):
    """Muon with Nesterov momentum for weight matrices, Adam for biases, norms and other vectors.

    Adam also updates parameters whose attribute `by_adam` is set, such as codebooks.

    The update of a weight matrix (for convolutions `[out, in * h * w]`) is the nearest orthogonal
    matrix to its momentum (Jordan et al. 2024), times lr sqrt(max(out, in)). So lr is the root mean
    square of the update, as it roughly is for Adam. Iterations are computed in `dtype`, for all
    weights of one shape together. timm's `nmuon` is the same with a fifth of the step, but takes
    long to import and only computes in bfloat16, which is slow on CPUs without support for it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters with a gradient. A closure, if given, computes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # By the smaller side, then by shape: matrices with one smaller side are moved together.
            sides: dict[int, dict[tuple[int, int], list[Pair]]]
            sides = defaultdict(lambda: defaultdict(list))
            vectors: list[Pair] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if getattr(parameter, "by_adam", False) or not _is_matrix(parameter):
                    vectors.append((parameter, parameter.grad))
                else:
                    shape = len(parameter), parameter.numel() // len(parameter)
                    sides[min(shape)][shape].append((parameter, parameter.grad))
            for shapes in sides.values():
                self._move_weights(group, list(shapes.values()))
            if vectors:
                self._move_vectors(group, vectors)
        return loss

    def _move_weights(self, group: dict[str, Any], shapes: list[list[Pair]]) -> None:
        momentum = group["momentum"]
        moved: list[Tensor] = [weight for alike in shapes for weight, _ in alike]
        gradients = [gradient for alike in shapes for _, gradient in alike]
        for weight in moved:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum"] for weight in moved]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        # Flatten in the order of channels-last memory: the order of columns does not matter.
        # If weights are split among processes, each process computes the whole step.
        updates = [
            whole(update).movedim(1, -1)
            for update in torch._foreach_lerp(gradients, averages, momentum)
        ]
        ends = list(accumulate(map(len, shapes)))
        parts = [slice(end - len(alike), end) for end, alike in zip(ends, shapes, strict=True)]
        stacks = [torch.stack([each.flatten(1) for each in updates[part]]) for part in parts]
        steps = orthogonal([stack.to(self.dtype) for stack in stacks])
        for part, found in zip(parts, steps, strict=True):
            size = -group["lr"] * max(found.shape[1:]) ** 0.5
            shaped = [
                split_like(step.reshape(update.shape).movedim(-1, 1), weight)
                for step, update, weight in zip(
                    found.to(updates[0].dtype), updates[part], moved[part], strict=True
                )
            ]
            torch._foreach_add_(moved[part], shaped, alpha=size)

    def _move_vectors(self, group: dict[str, Any], vectors: list[Pair]) -> None:
        (first, second), states = group["betas"], [self.state[vector] for vector, _ in vectors]
        for (vector, _), state in zip(vectors, states, strict=True):
            if not state:
                # A number of the host, since a tensor for each would take two operations a step.
                state["step"] = 0
                state["mean"], state["square"] = torch.zeros_like(vector), torch.zeros_like(vector)
            state["step"] += 1
        gradients = [gradient for _, gradient in vectors]
        means = [state["mean"] for state in states]
        squares = [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        steps = [float(state["step"]) for state in states]
        scales = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, 1e-8)
        sizes = [-group["lr"] / (1 - first**step) for step in steps]
        torch._foreach_addcdiv_([vector for vector, _ in vectors], means, scales, sizes)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and 1 < len(parameter) < parameter.numel()


def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Approximately the nearest orthogonal matrices to `[n, out, in]`: singular values near 1.

    The stacks are of several shapes, whose smaller side is the same.
    """
    wide = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    norms = [x.norm(dim=(1, 2), keepdim=True) for x in wide]
    torch._foreach_clamp_min_(norms, 1e-7)
    found = [x / norm for x, norm in zip(wide, norms, strict=True)]
    squares = {
        number: x @ x.mT
        for number, x in enumerate(found)
        if x.shape[2] >= 2 * x.shape[1] and x.element_size() >= 4
    }
    products: dict[int, Tensor] = {}
    if squares:
        every = _products(torch.cat([*squares.values()]))
        products = dict(zip(squares, every.split([*map(len, squares.values())]), strict=True))
    found = [
        products[number] @ x if number in products else _iterated(x)
        for number, x in enumerate(found)
    ]
    return [x.mT if y.shape[1] > y.shape[2] else x for x, y in zip(found, stacks, strict=True)]


def _iterated(x: Tensor) -> Tensor:
    """Iterate X := (a + b S + c S²) X, where S = X Xᵀ."""
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        squares = x @ x.mT
        powers = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        x = torch.baddbmm(x, powers, x, beta=a)
    return x


def _products(squares: Tensor) -> Tensor:
    """Matrices that, times X, give the same iteration's result; they follow from S = X Xᵀ alone.

    It takes two products of the full X instead of ten. With P = a + b S + c S², iterate S := P S P;
    the result is the product of all P. S has the squares of X's singular values, so half precision
    would lose small ones.
    """
    product = powers = _polynomial(squares)
    for _ in range(_ROUNDS - 1):
        squares = powers @ squares @ powers
        powers = _polynomial(squares)
        product = powers @ product
    return product


def _polynomial(squares: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    powers = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
    powers.diagonal(dim1=1, dim2=2).add_(a)
    return powers
