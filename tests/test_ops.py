"""The fast primitives against slow plain references in float64."""

from __future__ import annotations

import pytest
import torch

from genkit.ops import nearest_codes, sigmoid_attention


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 5, 3), (1000, 512, 64), (3000, 1024, 16)])
def test_nearest_codes_are_those_of_a_float64_search(n: int, k: int, d: int) -> None:
    torch.manual_seed(n)
    latents, codebook = torch.randn(n, d), torch.randn(k, d)
    distances = torch.cdist(
        latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert torch.equal(nearest_codes(latents, codebook), distances.argmin(1))


def test_nearest_codes_take_the_lowest_of_equal_codes() -> None:
    codebook = torch.tensor([[5.0], [1.0], [1.0], [0.0]])
    assert nearest_codes(torch.tensor([[1.1], [-3.0]]), codebook).tolist() == [1, 3]


def test_nearest_codes_of_no_latents() -> None:
    indices = nearest_codes(torch.empty(0, 4), torch.randn(3, 4))
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64


def test_nearest_codes_never_hold_all_distances() -> None:
    """2^15 latents against 2^12 codes would need 512 MB at once; the tiles stay far below."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        nearest_codes(torch.randn(2**15, 4), torch.randn(2**12, 4))
    assert largest <= 2**20


@pytest.mark.parametrize("bias", [0.0, -3.5])
def test_sigmoid_attention_is_its_definition(bias: float) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 3)
    expected = torch.zeros(2, 5, 3, dtype=torch.float64)
    for b in range(2):
        for i in range(5):
            for j in range(7):
                score = float(q[b, i].double() @ k[b, j].double()) / 8**0.5 + bias
                expected[b, i] += v[b, j].double() / (
                    1 + torch.exp(torch.tensor(-score, dtype=torch.float64))
                )
    assert torch.allclose(sigmoid_attention(q, k, v, bias).double(), expected, atol=1e-5)
