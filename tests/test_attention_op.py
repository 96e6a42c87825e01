"""Sigmoid attention against loops in float64, whole and in tiles of many sizes."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.timing import peak_memory
from genkit.ops import sigmoid_attention

MODULE = importlib.import_module("genkit.ops.attention")

# B, N, M, d, e: self- and cross-attention, a single pixel, sizes that no tile divides.
SIZES = [(2, 5, 7, 8, 3), (3, 16, 16, 4, 4), (1, 1, 9, 2, 5), (2, 9, 1, 3, 1), (5, 13, 4, 1, 6)]


@pytest.fixture(params=["whole", (1, 1), (3, 4), (4, 2), (64, 64)], ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All attention weights at once, or in tiles of this many queries and keys."""
    if request.param != "whole":
        tiled(monkeypatch, request.param)
    return request.param


def tiled(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    for name in ("_TILE", "_TILE_OF_HALVES"):
        monkeypatch.setattr(MODULE, name, size)
    monkeypatch.setattr(MODULE, "_KEPT", 0)


def inputs(b: int, n: int, m: int, d: int, e: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    return tuple(
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((b, n, d), (b, m, d), (b, m, e))
    )


def naive(queries: Tensor, keys: Tensor, values: Tensor, bias: float | Tensor = 0.0) -> Tensor:
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
    return torch.sigmoid(scores + bias) @ values


def gradients(out: Tensor, of: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of a weighted sum of the output, with a different weight for each element."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    return torch.autograd.grad(out, of, weights.to(out.dtype))


def close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], error: float) -> bool:
    """Whether every error is at most `error` times the largest element."""
    return all(
        a.shape == b.shape and bool((a.double() - b).abs().max() <= error * b.abs().max())
        for a, b in zip(found, exact, strict=True)
    )


def as_exact(
    found: tuple[Tensor, ...], plain: tuple[Tensor, ...], exact: tuple[Tensor, ...]
) -> bool:
    """Whether no error exceeds four times that of the naive form on this machine.

    Processors sum the terms of a product in different orders, so the naive form's error depends on
    the machine. Four roundings of the largest element are always allowed.
    """

    def off(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y).detach().abs().max())

    return all(
        a.shape == b.shape == c.shape
        and off(a, c)
        <= 4 * off(b, c) + 4 * torch.finfo(a.dtype).eps * float(c.detach().abs().max())
        for a, b, c in zip(found, plain, exact, strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias", [0.0, -3.5])
def test_it_matches_its_definition(tile: Any, size: tuple[int, ...], bias: float) -> None:
    q, k, v = (x.detach() for x in inputs(*size, torch.float32))
    expected = torch.zeros(size[0], size[1], size[4], dtype=torch.float64)
    for b in range(size[0]):
        for i in range(size[1]):
            for j in range(size[2]):
                score = float(q[b, i].double() @ k[b, j].double()) / math.sqrt(size[3]) + bias
                expected[b, i] += v[b, j].double() / (1 + math.exp(-score))
    assert as_exact((sigmoid_attention(q, k, v, bias),), (naive(q, k, v, bias),), (expected,))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_its_gradients_match_its_definition(
    tile: Any, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    given = (*inputs(*size, dtype), torch.tensor(-1.25, dtype=dtype, requires_grad=True))
    exact = tuple(x.detach().double().requires_grad_() for x in given)
    found, plain, expected = sigmoid_attention(*given), naive(*given), naive(*exact)
    assert found.dtype == dtype
    grads = gradients(found, given)
    assert [x.dtype for x in grads] == [dtype] * 4
    if dtype == torch.float64:  # There is no more exact reference.
        assert close((found, *grads), (expected, *gradients(expected, exact)), 1e-13)
    else:
        assert as_exact(
            (found, *grads),
            (plain, *gradients(plain, given)),
            (expected, *gradients(expected, exact)),
        )


def test_first_and_second_derivatives_match_finite_differences(tile: Any) -> None:
    given = (*inputs(2, 3, 5, 2, 2, torch.float64), torch.tensor(-0.5).double().requires_grad_())
    assert torch.autograd.gradcheck(sigmoid_attention, given)
    assert torch.autograd.gradgradcheck(sigmoid_attention, given)


def test_one_tensor_may_be_queries_keys_and_values(tile: Any) -> None:
    """First and second derivatives add up over the three roles."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sigmoid_attention(x, x, x, -1.0), (x,))
    assert torch.autograd.gradgradcheck(lambda x: sigmoid_attention(x, x, x, -1.0), (x,))


def test_tensors_without_gradient_get_none(tile: Any) -> None:
    q, k, v = (x.detach() for x in inputs(2, 5, 7, 3, 4, torch.float32))
    k.requires_grad_()
    sigmoid_attention(q, k, v, torch.tensor(0.5)).sum().backward()
    assert q.grad is None
    assert v.grad is None
    expected = torch.autograd.grad(naive(q, k, v, 0.5).sum(), k)
    assert torch.allclose(k.grad, *expected, atol=1e-6)
    with torch.no_grad():
        assert not sigmoid_attention(q, k, v).requires_grad


def test_pixels_may_be_transposed_in_memory(tile: Any) -> None:
    """Images and their gradients are stored as `[B, C, N]` and read as `[B, N, C]`."""
    given = inputs(2, 5, 7, 4, 3, torch.float64)
    across = tuple(x.detach().mT.contiguous().mT.requires_grad_() for x in given)
    found, expected = sigmoid_attention(*across, -2.0), naive(*given, -2.0)
    assert close((found,), (expected,), 1e-13)
    weights = torch.randn(2, 3, 5, dtype=torch.float64).mT
    assert close(
        torch.autograd.grad(found, across, weights),
        torch.autograd.grad(expected, given, weights),
        1e-13,
    )


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_empty_inputs(tile: Any, shape: tuple[int, int, int]) -> None:
    q, k, v = inputs(*shape, 3, 2, torch.float32)
    out = sigmoid_attention(q, k, v, -1.0)
    assert out.shape == (shape[0], shape[1], 2)
    assert not out.any()
    out.sum().backward()


def test_a_bias_of_more_dimensions_is_added_to_the_scores(tile: Any) -> None:
    given = (*inputs(2, 5, 7, 3, 2, torch.float64), torch.randn(5, 7).double().requires_grad_())
    found, expected = sigmoid_attention(*given), naive(*given)
    assert torch.allclose(found, expected)
    assert close(gradients(found, given), gradients(expected, given), 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_dtype_of_products(tile: Any, dtype: torch.dtype) -> None:
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            if "bmm" in str(func):
                seen.update(x.dtype for x in args if isinstance(x, Tensor))
            return result

    given = inputs(2, 6, 10, 4, 5, torch.float32)
    exact = tuple(x.detach().double().requires_grad_() for x in given)
    with Watch():
        with torch.autocast("cpu", dtype=dtype):
            found = sigmoid_attention(*given, -1.0)
        grads = gradients(found, given)
    assert seen == {dtype}
    assert found.dtype == dtype
    expected = naive(*exact, -1.0)
    assert close((found,), (expected,), 0.03)
    assert [x.dtype for x in grads] == [torch.float32] * 3
    assert close(grads, gradients(expected, exact), 0.03)


def test_a_backward_pass_under_autocast_stays_in_float32(tile: Any) -> None:
    given = inputs(2, 6, 10, 4, 5, torch.float64)
    singles = tuple(x.detach().float().requires_grad_() for x in given)
    found, plain = (f(*singles, -1.0) for f in (sigmoid_attention, naive))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=tile != "whole"):
        grads = gradients(found, singles)
    expected = gradients(naive(*given, -1.0), given)
    assert as_exact(grads, gradients(plain, singles), expected)


def test_autocast_leaves_float64_alone() -> None:
    given = inputs(1, 1030, 1030, 2, 2, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.allclose(sigmoid_attention(*given), naive(*given).double(), rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_tiles_give_the_right_result(dtype: torch.dtype) -> None:
    """With sizes that its own tiles do not divide, and small weights beside a large bias."""
    given = inputs(1, 4000, 2500, 8, 8, dtype)
    assert MODULE._KEPT * math.prod(MODULE._tile(dtype)) < 4000 * 2500
    exact = tuple(x.detach().double().requires_grad_() for x in given)
    bias = -math.log(2500)
    (found, plain), expected = (
        (f(*given, bias) for f in (sigmoid_attention, naive)),
        naive(*exact, bias),
    )
    assert as_exact(
        (found, *gradients(found, given)),
        (plain, *gradients(plain, given)),
        (expected, *gradients(expected, exact)),
    )


def test_memory_grows_linearly_with_pixels() -> None:
    def peak(attend: Any, pixels: int) -> int:
        given = inputs(1, pixels, pixels, 16, 16, torch.float32)
        return peak_memory(lambda: attend(*given, -8.0).sum().backward())

    tile = 2 * 4 * math.prod(MODULE._TILE)
    half, ours = (peak(sigmoid_attention, pixels) for pixels in (2048, 4096))
    assert ours - tile < 2.2 * (half - tile)
    assert ours < peak(naive, 4096) / 20


def test_a_pass_without_gradients_keeps_nothing() -> None:
    q, k, v = inputs(1, 4096, 2048, 8, 8, torch.float32)
    with torch.no_grad():
        peak = peak_memory(lambda: sigmoid_attention(q, k, v, torch.tensor(-8.0)))
    # A tile of weights, its product with the values, the scaled queries, and the result.
    assert peak <= 4 * (math.prod(MODULE._TILE) + MODULE._TILE[0] * 8 + 2 * 4096 * 8) + 1024


class Attend(torch.nn.Module):
    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return sigmoid_attention(queries, keys, values, -1.0)


def test_an_exported_graph_takes_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled(monkeypatch, (2, 2))
    n, m = torch.export.Dim("n"), torch.export.Dim("m")
    graph = torch.export.export(
        Attend(),
        inputs(2, 5, 7, 4, 3, torch.float32),
        dynamic_shapes=({1: n}, {1: m}, {1: m}),
        strict=False,
    )
    given = inputs(2, 90, 33, 4, 3, torch.float32)
    assert torch.allclose(graph.module()(*given), naive(*given, -1.0), atol=1e-5)


def test_it_compiles_to_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled(monkeypatch, (2, 2))
    compiled = torch.compile(sigmoid_attention, backend="eager", fullgraph=True)
    given = inputs(2, 5, 7, 4, 3, torch.float32)
    assert torch.allclose(compiled(*given, -1.0), naive(*given, -1.0), atol=1e-5)


def test_shapes_are_known_on_meta() -> None:
    given = (
        torch.empty(size, device="meta") for size in ((2, 4096, 8), (2, 4096, 8), (2, 4096, 3))
    )
    assert sigmoid_attention(*given).shape == (2, 4096, 3)
