"""The contract of quantizers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from genkit.checks import check_counting, check_range, check_result, finite, want
from genkit.interfaces import Level, Quantized
from genkit.testing.device import also
from genkit.testing.tools import (
    build,
    call,
    check_reload,
    close,
    first_failure,
    halved,
    has,
    part,
    put,
    reach,
)
from genkit.tokenizer import Tokenizer

SIGNATURE = "Quantizer(options, level)"


def check_quantizer(
    name: str, *, channels: int = 8, processes: int = 2, gpu: bool = True, **options: Any
) -> None:
    """Check the quantizer `name`: shapes, gradients, decoding, bf16, save and load, and processes.

    Processes that train together must agree; `processes=1` skips that check. The latents have
    `channels` channels; `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen, level = part("quantizer", name, options), Level(0, channels, 4)
    torch.manual_seed(0)
    quantizer = build(chosen, SIGNATURE, level)
    size, codebooks = _codebooks(quantizer)
    latents = put(torch.randn(3, channels, 4, 6)).requires_grad_()
    said = f"forward(latents {list(latents.shape)})"
    out = call(said, quantizer, latents)
    check_result(out, latents, size, codebooks)
    # Use squares: a plain sum has no gradient through a normalisation. Leave out the loss: its
    # gradient does not show that one comes from the images.
    reach(out.latents.square().sum(), latents=latents)
    if out.loss.requires_grad:
        call("the backward pass of the loss", out.loss.backward)
        finite("the gradient of the loss", latents.grad)

    quantizer.eval()
    with torch.no_grad():
        before = latents.detach().clone()
        plain = call(f"{said} in eval mode", quantizer, latents)
        want(
            torch.equal(latents, before),
            "forward must not change its input latents: do not use in-place operations on them",
        )
        _check_decode(quantizer, plain, size)
        want(
            torch.equal(quantizer(latents).indices, plain.indices),
            "in eval mode the same latents must give the same indices",
        )
        # Call it through the tokenizer's own code, as a bf16 run does.
        rounded = latents.bfloat16()
        path = SimpleNamespace(levels=[level], quantizers=[quantizer], fusions=[])
        with halved():
            found = Tokenizer.quantize(cast("Tokenizer", path), [rounded])[0]
        want(
            torch.equal(found.indices, quantizer(rounded.float()).indices),
            "in a bf16 run the indices must be the same as in float32",
        )
    _check_training(build(chosen, SIGNATURE, level), channels)
    second = build(chosen, SIGNATURE, level)
    check_reload(quantizer, second, lambda module: [module(latents).indices])
    if processes > 1:
        _check_processes(name, channels, options, processes)
    if gpu:
        also("quantizer", name, channels=channels, **options)


def _codebooks(quantizer: Any) -> tuple[int, int]:
    """The number of codes in a codebook, and the number of codebooks."""
    __tracebackhide__ = True
    size = has(quantizer, "codebook_size", "the number of codes, an integer")
    want(
        isinstance(size, int) and size > 1,
        f"codebook_size must be an integer above 1, not {size!r}",
    )
    codebooks = getattr(quantizer, "codebooks", 1)
    # An author may have stored the codebooks themselves under that name.
    want(
        isinstance(codebooks, int) and codebooks > 0,
        "codebooks must be the number of codebooks, an integer above 0, not "
        f"{codebooks if isinstance(codebooks, int) else type(codebooks).__name__}",
    )
    want(
        callable(getattr(quantizer, "decode", None)),
        f"{type(quantizer).__name__} must have decode, a method (indices) → quantized latents",
    )
    return size, codebooks


def _check_decode(quantizer: Any, plain: Quantized, size: int) -> None:
    __tracebackhide__ = True
    check_range(plain.indices, size)
    check_counting(quantizer, plain)
    for code in (0, size - 1):
        said = f"decode of the index {code}, where codes are counted from 0 to {size - 1},"
        call(said, quantizer.decode, torch.full_like(plain.indices, code))
    said = f"decode(indices {list(plain.indices.shape)})"
    decoded = call(said, quantizer.decode, plain.indices)
    meaning = "the quantized latents of forward in eval mode"
    close("decode(indices)", decoded, plain.latents, meaning)
    # Decode a smaller batch too: decode must not depend on the latest forward pass.
    one = call("decode(indices) of one image alone", quantizer.decode, plain.indices[:1])
    close("decode(indices) of one image alone", one, plain.latents[:1], meaning)


def _check_training(quantizer: nn.Module, channels: int) -> None:
    """Train for enough steps to reach what a quantizer does only now and then."""
    __tracebackhide__ = True
    for step in range(20):
        latents = put(torch.randn(3, channels, 4, 6)).requires_grad_()
        out = call(f"training step {step}", quantizer, latents * (1 + step))
        total = out.latents.square().sum() + out.loss
        call(f"the backward pass of training step {step}", total.backward)
        finite(f"the loss of training step {step}", out.loss)


def _check_processes(name: str, channels: int, options: dict[str, Any], processes: int) -> None:
    __tracebackhide__ = True
    settings = json.dumps(["quantizer", name, channels, options])
    with tempfile.TemporaryDirectory() as folder:
        failed = first_failure(Path(folder), settings, processes)
        want(
            failed is None,
            f"training in {processes} processes must work, all of them making the same calls "
            f"of genkit.distributed in the same order; one of them ended with: {failed}",
        )
        states = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(processes)]
    for key, value in states[0].items():
        same = all(torch.equal(value, state[key]) for state in states[1:])
        want(
            same,
            f"'{key}' must stay the same on all processes: "
            "combine their values with genkit.distributed",
        )
