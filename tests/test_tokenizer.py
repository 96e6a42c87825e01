"""The tokenizer with every quantizer: modes, number types and unusual batches."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from test_pairs import NAMES, tokenizer

import genkit
from genkit.errors import GenkitError
from genkit.images import from_pixels
from genkit.models import TokenizerOptions
from genkit.ops import without_autocast
from genkit.settings import resolve

# Every quantizer in float16; two of them in the other types; the rest are in the slow tier.
TYPES = [
    pytest.param(
        kind,
        name,
        marks=() if kind == torch.float16 or name in ("vq", "lfq") else pytest.mark.slow,
    )
    for kind in (torch.float16, torch.bfloat16, torch.float64)
    for name in NAMES["quantizer"]
]


def made(quantizer: str = "vq", encoder: str = "aren") -> genkit.Tokenizer:
    return tokenizer(encoder, quantizer, "mirror", 2)


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers, including unsaved ones."""
    return [each.detach().clone() for each in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize(
    ("encoder", "quantizer"), [("timm", "vq"), *(("aren", name) for name in NAMES["quantizer"])]
)
def test_encoding_and_decoding_learn_nothing_in_training_mode(encoder: str, quantizer: str) -> None:
    """Neither before the first training step, when codes have no positions yet, nor after it."""
    trained = made(quantizer, encoder)
    # A stand-in for dropout and other noise.
    trained.decoder.register_module("noise", torch.nn.Dropout())
    trained.decoder.register_forward_hook(lambda module, _, out: module.noise(out))
    for _ in range(2):
        expected = trained.eval().encode(images())
        decoded = trained.decode(expected)
        trained.train()
        trained.encoder.eval()
        before, modes = tensors(trained), [each.training for each in trained.modules()]
        assert same(trained.encode(images()), expected)
        assert torch.equal(trained.decode(expected), decoded)
        assert same(tensors(trained), before)
        assert [each.training for each in trained.modules()] == modes
        trained.train()(images())


@pytest.mark.parametrize("quantizer", NAMES["quantizer"])
def test_a_frozen_tokenizer_learns_nothing(quantizer: str) -> None:
    frozen = made(quantizer).requires_grad_(False)
    expected = frozen.eval()(images())
    before = tensors(frozen)
    out = frozen.train()(images())
    assert same(tensors(frozen), before)
    assert same(out.indices, expected.indices)
    assert torch.equal(out.images, expected.images)
    assert all(each.training for each in frozen.modules())


def test_modes_are_restored_after_an_error() -> None:
    trained = made().train()
    trained.encoder.forward = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trained.encode(images())
    assert all(each.training for each in trained.modules())


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("quantizer", ["fsq", pytest.param("lfq", marks=pytest.mark.slow)])
def test_encoding_and_decoding_compile_to_one_graph(quantizer: str, training: bool) -> None:
    whole = made(quantizer).train(training)
    indices = whole.encode(images())
    compiled = torch.compile(whole.encode, backend="eager", fullgraph=True)
    assert same(compiled(images()), indices)
    compiled = torch.compile(whole.decode, backend="eager", fullgraph=True)
    assert torch.equal(compiled(indices), whole.decode(indices))
    assert all(each.training is training for each in whole.modules())


@pytest.mark.parametrize(("kind", "quantizer"), TYPES, ids=str)
def test_a_tokenizer_of_another_dtype(kind: torch.dtype, quantizer: str) -> None:
    """Quantizers keep their float32 weights bit for bit; everything else is converted."""
    other = made(quantizer).eval()
    indices = other.encode(images())
    before = tensors(other.quantizers)
    other.to(kind)
    assert same(tensors(other.quantizers), before)
    assert {each.dtype for each in other.encoder.parameters()} == {kind}
    found = other.encode(images())
    for one, two in zip(found, indices, strict=True):
        assert (one == two).float().mean() > 0.9
    out = other(images())
    assert same(out.indices, found)
    assert out.images.dtype == other.decode(found).dtype == kind
    assert torch.equal(other.decode(found), out.images)
    # It also trains.
    out = other.train()(images())
    (out.images.square().mean() + out.loss).backward()
    for parameter in other.parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype
    assert all(bool(each.grad.isfinite().all()) for each in other.encoder.parameters())


@pytest.mark.parametrize("quantizer", NAMES["quantizer"])
def test_a_tokenizer_built_with_another_default_dtype(quantizer: str) -> None:
    expected, given = made(quantizer).eval(), images()
    torch.set_default_dtype(torch.bfloat16)
    try:
        built = made(quantizer).eval()
        built.load_state_dict(expected.state_dict())
        found = built.encode(given)
        decoded = built.decode(found)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(tensors(built.quantizers), tensors(expected.quantizers))
    assert same(built.encode(given), found)
    assert torch.equal(built.decode(found), decoded)


@pytest.mark.parametrize(
    "kind",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
# Just below, at and above the number of codes that int8 holds; and the number that uint8 holds.
@pytest.mark.parametrize("size", [127, 128, 129, 256])
def test_indices_of_any_integer_type_are_decoded(kind: torch.dtype, size: int) -> None:
    settings: dict[str, Any] = {
        "encoder": {
            "name": "aren",
            "width": [8],
            "base_channels": 8,
            "latent_channels": 8,
            "levels": 1,
        },
        "quantizer": {"name": "vq", "codebook_size": size},
        "fusion": "hierarchical",
        "decoder": {"name": "mirror", "width": [8]},
    }
    whole = genkit.Tokenizer(resolve(TokenizerOptions, settings)).eval()
    top = min(size, torch.iinfo(kind).max + 1) - 1
    indices = [torch.tensor([[[0, top], [1, top // 2]]])]
    assert torch.equal(whole.decode([indices[0].to(kind)]), whole.decode(indices))
    if top == size - 1 and size <= torch.iinfo(kind).max:
        with pytest.raises(GenkitError, match=f"must lie between 0 and {size - 1}"):
            whole.decode([(indices[0] + 1).to(kind)])


def test_uint64_beyond_int64_is_refused() -> None:
    huge = torch.full((1, 8, 12), 2**63 + 1, dtype=torch.uint64)
    with pytest.raises(GenkitError, match="must lie between 0 and 15"):
        made().decode([huge, huge[:, :4, :6]])


@pytest.mark.parametrize("quantizer", NAMES["quantizer"])
def test_an_empty_batch(quantizer: str) -> None:
    whole = made(quantizer)
    expected = [(0, *each.shape[1:]) for each in whole.encode(images())]
    indices = whole.encode(images(0))
    assert [tuple(each.shape) for each in indices] == expected
    assert whole.decode(indices).shape == (0, 3, 32, 48)
    for training in (False, True):
        out = whole.train(training)(images(0))
        assert out.images.shape == (0, 3, 32, 48)
        assert [tuple(each.shape) for each in out.indices] == expected
        assert out.loss == 0


@pytest.mark.parametrize("quantizer", NAMES["quantizer"])
def test_a_tokenizer_is_pickled(quantizer: str) -> None:
    whole = made(quantizer).eval()
    again = pickle.loads(pickle.dumps(whole))
    assert same(again.encode(images()), whole.encode(images()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 3, 33, 33), "multiples of 8, not 33 x 33"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "genkit.images.from_pixels"),
        (torch.zeros(1, 32, 32, 3), r"\[B, 3, H, W\]"),
        (np.zeros((1, 3, 32, 32)), "must be a tensor, not ndarray"),
    ],
)
def test_forward_refuses_what_encode_refuses(wrong: Any, message: str, training: bool) -> None:
    with pytest.raises(GenkitError, match=message):
        made().train(training)(wrong)


def test_the_range_is_checked_only_in_eval_mode() -> None:
    """In training mode the check would synchronize with the device at every step."""
    whole = made()
    whole.train()(images() * 255)
    with pytest.raises(GenkitError, match=r"must lie in \[-1, 1\]; these reach 25"):
        whole.eval()(images() * 255)
    with pytest.raises(GenkitError, match="these reach nan"):
        whole(images() * torch.nan)


def test_image_functions_are_public_names() -> None:
    assert genkit.images.from_pixels is from_pixels


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.ones((1, 32, 32, 3), "float32"), r"float32 \[1, 32, 32, 3\]"),
        (np.zeros((1, 3, 32, 32), "uint8"), r"uint8 \[1, 3, 32, 32\]"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"uint8 \[32, 32, 3\]"),
    ],
)
def test_from_pixels_refuses_other_types_and_shapes(pixels: Any, found: str) -> None:
    with pytest.raises(
        GenkitError, match=rf"must be uint8 or uint16 \[B, H, W, C\], not torch\.{found}"
    ):
        from_pixels(pixels)


def test_quantizing_works_on_a_device_without_autocast() -> None:
    with without_autocast(torch.device("meta")):
        pass
    whole = made("lfq").to("meta")
    found = whole.quantize(whole.encoder(images().to("meta")))
    assert [each.indices.shape for each in found] == [(2, 8, 12), (2, 4, 6)]
