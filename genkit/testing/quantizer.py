"""The contract of quantizers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from genkit.checkpoint import distinct_state
from genkit.interfaces import Level, Quantized
from genkit.testing.tools import (
    build,
    call,
    check_reload,
    close,
    finite,
    floats,
    form,
    has,
    met,
    part,
    reach,
    shape,
    want,
)
from genkit.tokenizer import Tokenizer

SIGNATURE = "Quantizer(options, level)"


def check_quantizer(name: str, *, channels: int = 8, processes: int = 2, **options: Any) -> None:
    """Check the quantizer `name`: shapes, gradients, decoding, bf16, save and load, and processes.

    Processes that train together must agree; with `processes=1` none is started. `channels` are
    those of the latents, `options` the component's own.
    """
    __tracebackhide__ = True
    chosen, level = part("quantizer", name, options), Level(0, channels, 4)
    torch.manual_seed(0)
    quantizer = build(chosen, SIGNATURE, level)
    size, codebooks = _codebooks(quantizer)
    latents = torch.randn(3, channels, 4, 6, requires_grad=True)
    said = f"forward(latents {list(latents.shape)})"
    out = call(said, quantizer, latents)
    _check_result(out, latents, size, codebooks)
    # Squares rather than a sum, whose gradient vanishes behind a normalisation; and without the
    # loss, whose own gradient says nothing of the images.
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
            "forward must not change the latents that it is given: no operation on them may be "
            "in place",
        )
        _check_decode(quantizer, plain)
        want(
            torch.equal(quantizer(latents).indices, plain.indices),
            "in eval mode the same latents must give the same indices",
        )
        # As the tokenizer calls it in a bf16 run.
        rounded = latents.bfloat16()
        path = SimpleNamespace(levels=[level], quantizers=[quantizer], fusions=[])
        with torch.autocast("cpu", torch.bfloat16):
            found = Tokenizer.quantize(cast("Tokenizer", path), [rounded])[0]
        want(
            torch.equal(found.indices, quantizer(rounded.float()).indices),
            "in a bf16 run the indices must be those of float32",
        )
    _check_training(build(chosen, SIGNATURE, level), channels)
    second = build(chosen, SIGNATURE, level)
    check_reload(quantizer, second, lambda module: [module(latents).indices])
    if processes > 1:
        _check_processes(name, channels, options, processes)


def _codebooks(quantizer: Any) -> tuple[int, int]:
    """How many codes a codebook has, and how many codebooks there are."""
    __tracebackhide__ = True
    size = has(quantizer, "codebook_size", "the number of codes, a whole number")
    want(
        isinstance(size, int) and size > 1,
        f"codebook_size must be a whole number above 1, not {size!r}",
    )
    codebooks = getattr(quantizer, "codebooks", 1)
    # An author may well keep the codebooks themselves under that name.
    want(
        isinstance(codebooks, int) and codebooks > 0,
        "codebooks must be how many there are, a whole number above 0, not "
        f"{codebooks if isinstance(codebooks, int) else type(codebooks).__name__}",
    )
    want(
        callable(getattr(quantizer, "decode", None)),
        f"{type(quantizer).__name__} must have decode, a method (indices) → quantized latents",
    )
    return size, codebooks


def _check_result(out: Any, latents: Tensor, size: int, codebooks: int) -> None:
    __tracebackhide__ = True
    want(
        isinstance(out, Quantized),
        f"forward must return genkit.Quantized(latents, indices, loss), not {type(out).__name__}",
    )
    floats("the quantized latents", out.latents, latents.shape)
    want(isinstance(out.indices, Tensor), f"indices must be one tensor, not {form(out.indices)}")
    want(out.indices.dtype == torch.int64, f"indices must be int64, not {out.indices.dtype}")
    images, _, height, width = latents.shape
    wanted = (images, height, width, codebooks) if codebooks > 1 else (images, height, width)
    several = "; [B, h, w], or [B, h, w, codebooks] where the attribute codebooks is above 1"
    shape("the indices", out.indices, wanted, several)
    want(
        out.indices.min() >= 0 and out.indices.max() < size,
        f"indices must lie between 0 and codebook_size - 1 = {size - 1}, "
        f"not {out.indices.min()} and {out.indices.max()}",
    )
    shape("the loss", out.loss, (), "; without a loss it is latents.new_zeros(())")
    finite("the loss", out.loss)


def _check_decode(quantizer: Any, plain: Quantized) -> None:
    __tracebackhide__ = True
    said = f"decode(indices {list(plain.indices.shape)})"
    decoded = call(said, quantizer.decode, plain.indices)
    meaning = "the quantized latents of forward in eval mode"
    close("decode(indices)", decoded, plain.latents, meaning)
    # Nobody decodes only what was encoded a moment ago.
    one = call("decode(indices) of one image alone", quantizer.decode, plain.indices[:1])
    close("decode(indices) of one image alone", one, plain.latents[:1], meaning)


def _check_training(quantizer: nn.Module, channels: int) -> None:
    """Steps enough for whatever a quantizer does now and then, each with its gradient."""
    __tracebackhide__ = True
    for step in range(20):
        latents = torch.randn(3, channels, 4, 6, requires_grad=True)
        out = call(f"training step {step}", quantizer, latents * (1 + step))
        total = out.latents.square().sum() + out.loss
        call(f"the backward pass of training step {step}", total.backward)
        finite(f"the loss of training step {step}", out.loss)


def _check_processes(name: str, channels: int, options: dict[str, Any], processes: int) -> None:
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_train_one, (folder, name, channels, options, processes), nprocs=processes)
        except ProcessException as error:
            last = str(error).strip().splitlines()[-1]
            raise AssertionError(
                f"training in {processes} processes must work, all of them making the same calls "
                f"of genkit.distributed in the same order; one of them ended with: {last}"
            ) from error
        states = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(processes)]
    for key, value in states[0].items():
        same = all(torch.equal(value, state[key]) for state in states[1:])
        want(
            same,
            f"'{key}' must stay the same on all processes; "
            "genkit.distributed has what adds up over them",
        )


def _train_one(
    rank: int, folder: str, name: str, channels: int, options: dict[str, Any], processes: int
) -> None:
    """One process that quantizes latents of its own, another number of them than the others."""
    with met(rank, folder, processes):
        torch.manual_seed(0)
        quantizer = part("quantizer", name, options).build(Level(0, channels, 4))
        torch.manual_seed(1 + rank)
        for _ in range(3):
            quantizer(torch.randn(2 + rank, channels, 4, 4))
        save_file(
            {key: value.contiguous() for key, value in distinct_state(quantizer).items()},
            Path(folder) / f"{rank}.safetensors",
        )
