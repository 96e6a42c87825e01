"""Attention with a sigmoid over all pairs, in memory that grows with N, not with N M."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genkit.ops.precision import without_autocast

# Queries and keys of a tile whose weights fit the cache of a CPU core. Half-precision products are
# so fast that starting smaller tiles would take longer than computing them.
_TILE = (512, 256)
_TILE_OF_HALVES = (1024, 1024)
_TILE_ON_GPU = (4096, 4096)
_HALVES = (torch.bfloat16, torch.float16)
# Up to this many tiles, the weights are kept for the backward pass instead of recomputed.
_KEPT = 8


def sigmoid_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: float | Tensor = 0.0
) -> Tensor:
    """sigmoid(Q K^T / sqrt(d) + bias) V, of shape `[B, N, e]`.

    The queries Q are `[B, N, d]`, the keys K `[B, M, d]`, the values V `[B, M, e]`, all of one
    floating dtype, and the bias is a number or a tensor of no dimensions. Eqs. 2 and 3 of
    "Attentive VQ-VAE" (Rivera and Hoyos, arXiv 2309.11641).

    At most one tile of the `[B, N, M]` weights exists at a time, and the backward pass recomputes
    them. The weights exist as a whole for small inputs, in a traced or compiled graph, and for
    second derivatives; `torch.func` works in these cases. Under autocast the products use its
    dtype.
    """
    device = queries.device.type
    if (
        torch.compiler.is_compiling()
        or (isinstance(bias, Tensor) and bias.ndim > 0)
        or not torch.amp.is_autocast_available(device)
    ):
        return _whole(queries, keys, values, bias)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        queries, keys, values = (
            x if x.dtype == torch.float64 else x.to(dtype) for x in (queries, keys, values)
        )
    weights = queries.shape[0] * queries.shape[1] * keys.shape[1]
    if weights <= _KEPT * math.prod(_tile(queries.dtype)):
        return _whole(queries, keys, values, bias)
    contiguous = (x.contiguous() for x in (queries, keys, values))
    bias = torch.as_tensor(bias, dtype=_sum_dtype(queries.dtype))
    return _Tiled.apply(*contiguous, bias)


def _whole(queries: Tensor, keys: Tensor, values: Tensor, bias: float | Tensor) -> Tensor:
    scores = torch.matmul(queries * _scale(queries), keys.transpose(1, 2))
    return torch.matmul(torch.sigmoid(scores + bias), values)


class _Tiled(torch.autograd.Function):
    """The attention, tile by tile; saves nothing but its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        total = values.new_zeros(*queries.shape[:2], values.shape[2], dtype=bias.dtype)
        for q, o, k, v in _tiles((queries, total), (keys, values)):
            _add_product(o, _weights(q, k, bias), v)
        return total.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad
        # The inputs already have the dtype that autocast chose in the forward pass.
        with without_autocast(gradient.device):
            if not torch.is_grad_enabled():
                return _gradients(gradient.contiguous(), wanted[3], *inputs)
            # Second derivatives. Views keep inputs apart that are one tensor.
            views = [x.view_as(x) for x in inputs]
            asked = [x for x, want in zip(views, wanted, strict=True) if want]
            found = torch.autograd.grad(_whole(*views), asked, gradient, create_graph=True)
        each = iter(found)
        return tuple(next(each) if want else None for want in wanted)


def _gradients(
    gradient: Tensor, of_bias: bool, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    dqs, dks, dvs, total = (
        torch.zeros_like(x, dtype=bias.dtype) for x in (queries, keys, values, bias)
    )
    for q, g, dq, k, v, dk, dv in _tiles((queries, gradient, dqs), (keys, values, dks, dvs)):
        weights = _weights(q, k, bias)
        _add_product(dv, weights.transpose(1, 2), g)
        scores = torch.bmm(g, v.transpose(1, 2))  # the gradient of the weights, next of the scores
        torch.ops.aten.sigmoid_backward.grad_input(scores, weights, grad_input=scores)
        _add_product(dq, scores, k)
        _add_product(dk, scores.transpose(1, 2), q)
        if of_bias:
            total += scores.sum(dtype=total.dtype)
    dqs *= _scale(queries)
    return *(x.to(queries.dtype) for x in (dqs, dks, dvs)), total


def _tiles(of_queries: tuple[Tensor, ...], of_keys: tuple[Tensor, ...]) -> Iterator[Any]:
    """Yield, per tile, views of the tensors along the queries `[B, N, …]` and keys `[B, M, …]`.

    The first view, of the queries themselves, is scaled.
    """
    queries, keys = of_queries[0], of_keys[0]
    (height, width), cores = _tile(queries.dtype), torch.get_num_threads()
    if queries.device.type != "cpu":
        (height, width), cores = _TILE_ON_GPU, 1
    # Small images share a tile, so that every core has work.
    weights = height * width * cores
    width = min(width, keys.shape[1])
    images = min(len(queries), max(1, weights // (min(height, queries.shape[1]) * width)))
    height = weights // (images * width)
    grouped = [x.split(images) for x in (*of_queries, *of_keys)]
    for group in zip(*grouped, strict=True):
        across = list(zip(*(x.split(width, 1) for x in group[len(of_queries) :]), strict=True))
        along = zip(*(x.split(height, 1) for x in group[: len(of_queries)]), strict=True)
        for part, *others in along:
            scaled = part * _scale(part)
            for tile in across:
                yield scaled, *others, *tile


def _scale(queries: Tensor) -> float:
    return 1 / math.sqrt(queries.shape[-1])


def _tile(dtype: torch.dtype) -> tuple[int, int]:
    return _TILE_OF_HALVES if dtype in _HALVES else _TILE


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    return torch.bmm(queries, keys.transpose(1, 2)).add_(bias).sigmoid_()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product to a sum.

    The product is computed first: added one by one to the larger sum, its terms would lose digits.
    """
    total.add_(torch.bmm(a, b))


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALVES else dtype
