"""A user's own `torch.compile` of a tokenizer in eval mode gives one graph, without a break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY
from test_nearest import searched
from test_pretend import CEILINGS

from genkit.ops import nearest_codes
from genkit.run.options import layered, resolve_run
from genkit.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


def compared(quantizer: dict[str, Any], backend: str) -> Tokenizer:
    """A tokenizer that gives the same compiled, in one graph."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    options = resolve_run(layered(None, TINY, {"quantizer": quantizer})).tokenizer
    tokenizer = Tokenizer(options).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = tokenizer(images)
    found = torch.compile(tokenizer, backend=backend, fullgraph=True)(images)
    for one, other in zip(expected.indices, found.indices, strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(expected.images, found.images, atol=1e-5)
    (found.images.square().mean() + found.loss).backward()
    return tokenizer


@pytest.mark.parametrize("name", CEILINGS)
def test_every_quantizer_compiles_to_one_graph(name: str) -> None:
    compared({"name": name, **CEILINGS[name][1]}, "eager")


def test_gradients_go_through_a_compiled_tokenizer() -> None:
    tokenizer = compared({"name": "vq", "codebook_size": 16}, "aot_eager")
    first = next(tokenizer.encoder.parameters())
    assert first.grad is not None
    assert first.grad.any()


def test_a_compiled_search_takes_any_number_of_latents() -> None:
    torch._dynamo.reset()
    torch.manual_seed(1)
    codebook = torch.randn(30, 4)
    compiled = torch.compile(nearest_codes, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (5, 9):
        latents = torch.randn(count, 4)
        assert torch.equal(compiled(latents, codebook), searched(latents, codebook))


def test_the_operation_keeps_its_contract() -> None:
    """Its result has the form that the compiler is promised."""
    torch.library.opcheck(
        torch.ops.genkit.nearest_codes.default, (torch.randn(7, 4), torch.randn(5, 4))
    )
