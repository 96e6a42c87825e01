"""Contract tests for authors of components: one line checks all that the core relies on.

    from genkit.testing import check_quantizer

    def test_fsq() -> None:
        check_quantizer("fsq", channels=4, bins=5)

A failure is an `AssertionError` that says what the contract wants.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from genkit.checkpoint import distinct_state
from genkit.interfaces import Level, Quantized
from genkit.options import Part, resolve
from genkit.registry import registry
from genkit.tokenizer import Tokenizer

__all__ = [
    "check_attention",
    "check_dataset",
    "check_decoder",
    "check_discriminator",
    "check_encoder",
    "check_fusion",
    "check_perceptual",
    "check_quantizer",
]


def check_quantizer(name: str, *, channels: int = 8, processes: int = 2, **options: Any) -> None:
    """Check the quantizer `name`: shapes, gradients, decoding, bf16, save and load, and processes.

    Processes that train together must agree; with `processes=1` none is started. `channels` are
    those of the latents, `options` the component's own.
    """
    part, level = _part("quantizer", name, options), Level(0, channels, 4)
    torch.manual_seed(0)
    quantizer = part.build(level)
    size = quantizer.codebook_size
    _want(
        isinstance(size, int) and size > 1,
        f"codebook_size must be a whole number above 1, not {size!r}",
    )
    codebooks = getattr(quantizer, "codebooks", 1)
    _want(
        isinstance(codebooks, int) and codebooks > 0,
        f"codebooks must be how many there are, not {codebooks!r}",
    )
    latents = torch.randn(3, channels, 4, 6, requires_grad=True)

    out = quantizer(latents)
    _want(
        isinstance(out, Quantized),
        f"forward must return genkit.Quantized, not {type(out).__name__}",
    )
    _shape("the quantized latents", out.latents, latents.shape)
    _want(
        out.latents.dtype == torch.float32,
        f"the quantized latents must be float32, not {out.latents.dtype}",
    )
    _want(out.indices.dtype == torch.int64, f"indices must be int64, not {out.indices.dtype}")
    _shape("the indices", out.indices, (3, 4, 6, codebooks) if codebooks > 1 else (3, 4, 6))
    _want(
        out.indices.min() >= 0 and out.indices.max() < size,
        f"indices must lie between 0 and codebook_size - 1 = {size - 1}",
    )
    _shape("the loss", out.loss, ())
    _finite("the loss", out.loss)

    # Squares rather than a sum, whose gradient vanishes behind a normalisation.
    (out.latents.square().sum() + out.loss).backward()
    _want(
        latents.grad is not None and bool(latents.grad.any()),
        "a gradient must reach the latents through the quantizer",
    )
    _finite("the gradient", latents.grad)

    quantizer.eval()
    with torch.no_grad():
        plain = quantizer(latents)
        _close(
            "decode(indices)",
            quantizer.decode(plain.indices),
            plain.latents,
            "the quantized latents of forward in eval mode",
        )
        _want(
            torch.equal(quantizer(latents).indices, plain.indices),
            "in eval mode the same latents must give the same indices",
        )
        # As the tokenizer calls it in a bf16 run.
        rounded = latents.bfloat16()
        path = SimpleNamespace(levels=[level], quantizers=[quantizer], fusions=[])
        with torch.autocast("cpu", torch.bfloat16):
            found = Tokenizer.quantize(cast("Tokenizer", path), [rounded])[0]
        expected = quantizer(rounded.float())
        _want(
            torch.equal(found.indices, expected.indices),
            "in a bf16 run the indices must be those of float32",
        )
    _check_training(part.build(level), channels)
    _check_reload(quantizer, part.build(level), lambda module: module(latents).indices)
    if processes > 1:
        _check_processes(name, channels, options, processes)


def check_encoder(name: str, *, height: int = 64, width: int = 96, **options: Any) -> None:
    """Check the encoder `name`: its levels, the shapes of its latents, gradients, save and load."""
    part = _part("encoder", name, options)
    torch.manual_seed(0)
    encoder = part.build()
    levels = list(encoder.levels)
    _want(
        bool(levels) and all(isinstance(level, Level) for level in levels),
        "levels must be a list of genkit.Level",
    )
    _want(
        [level.index for level in levels] == list(range(len(levels))),
        "levels must be numbered 0, 1, …, the finest first",
    )
    strides = [level.stride for level in levels]
    _want(strides == sorted(set(strides)), f"strides must grow from level to level, not {strides}")
    images = (torch.rand(2, 3, height, width) * 2 - 1).requires_grad_()
    latents = encoder(images)
    _want(
        len(latents) == len(levels),
        f"forward must return latents for each of {len(levels)} levels, not {len(latents)}",
    )
    for level, each in zip(levels, latents, strict=True):
        _shape(
            f"level {level.index}",
            each,
            (2, level.channels, height // level.stride, width // level.stride),
        )
        _finite(f"level {level.index}", each)
    sum(each.square().sum() for each in latents).backward()
    _want(images.grad is not None and bool(images.grad.any()), "a gradient must reach the images")
    _check_reload(encoder, part.build(), lambda module: module(images)[0])


def check_decoder(
    name: str, *, channels: int = 8, strides: tuple[int, ...] = (4, 8), **options: Any
) -> None:
    """Check the decoder `name`: the shape of its images, gradients, save and load.

    It is built for levels of the given strides.
    """
    part = _part("decoder", name, options)
    levels = [Level(index, channels, stride) for index, stride in enumerate(strides)]
    torch.manual_seed(0)
    decoder = part.build(levels)
    latents = [
        torch.randn(2, channels, 32 // stride, 48 // stride, requires_grad=True)
        for stride in strides
    ]
    images = decoder(latents)
    _shape("the images", images, (2, 3, 32, 48))
    images.square().sum().backward()
    _want(
        latents[0].grad is not None and bool(latents[0].grad.any()),
        "a gradient must reach the finest level's latents",
    )
    _check_reload(decoder, part.build(levels), lambda module: module(latents))


def check_discriminator(name: str, **options: Any) -> None:
    """Check the discriminator `name`: the shape of its logits, gradients, save and load."""
    part = _part("discriminator", name, options)
    torch.manual_seed(0)
    discriminator = part.build()
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    logits = discriminator(images)
    _want(
        logits.ndim == 4 and logits.shape[:2] == (2, 1),
        f"the logits must be [2, 1, h, w], not {list(logits.shape)}",
    )
    logits.square().sum().backward()
    _want(images.grad is not None and bool(images.grad.any()), "a gradient must reach the images")
    _check_reload(discriminator, part.build(), lambda module: module(images))


def check_attention(name: str, *, channels: int = 8, **options: Any) -> None:
    """Check the attention `name`, on itself and across: shapes and gradients."""
    part = _part("attention", name, options)
    torch.manual_seed(0)
    attention = part.build(channels)
    features, context = torch.randn(2, channels, 4, 6), torch.randn(2, channels, 2, 3)
    values, others = torch.randn(2, 5, 4, 6, requires_grad=True), torch.randn(2, 5, 2, 3)
    _shape("self-attention", attention(features, values), values.shape)
    across = attention(features, values, context, others)
    _shape("cross-attention", across, values.shape)
    across.square().sum().backward()
    _want(values.grad is not None and bool(values.grad.any()), "a gradient must reach the values")


def check_fusion(name: str, *, channels: int = 8, **options: Any) -> None:
    """Check the fusion `name`: shapes, and gradients to both levels.

    The levels are two and four times apart.
    """
    for times in (2, 4):
        part = _part("fusion", name, options)
        fusion = part.build(Level(0, channels, 4), Level(1, channels, 4 * times))
        finer = torch.randn(2, channels, 8, 8, requires_grad=True)
        coarser = torch.randn(2, channels, 8 // times, 8 // times, requires_grad=True)
        mixed = fusion(finer, coarser)
        _shape("the mixed latents", mixed, finer.shape)
        mixed.square().sum().backward()
        for which, level in (("finer", finer), ("coarser", coarser)):
            _want(
                level.grad is not None and bool(level.grad.any()),
                f"a gradient must reach the {which} level",
            )


def check_perceptual(name: str, **options: Any) -> None:
    """Check the perceptual loss `name`: 0 for equal images, above it for others, gradients."""
    part = _part("perceptual", name, options)
    perceptual = part.build().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 96, generator=generator) * 2 - 1
    made = (images * 0.5).requires_grad_()
    loss = perceptual(made, images)
    _shape("the loss", loss, ())
    _finite("the loss", loss)
    _want(loss > 0, "the loss of images that differ must be above 0")
    loss.backward()
    _want(
        made.grad is not None and bool(made.grad.any()),
        "a gradient must reach the reconstructions",
    )
    _finite("the gradient", made.grad)
    same = perceptual(images, images)
    _want(abs(float(same)) < 1e-4, f"the loss of equal images must be 0, not {float(same):.3g}")


def check_dataset(name: str, *, resolution: int = 32, **options: Any) -> None:
    """Check the data set `name`: shapes, determinism, names, and one fingerprint for all splits."""
    part = _part("dataset", name, options)
    sets = {split: part.build(split, resolution, 0) for split in ("train", "heldout", "all")}
    for split, dataset in sets.items():
        _want(len(dataset) > 0, f"the split {split} must hold an image")
        indices = list(range(min(3, len(dataset))))
        images = dataset.images(indices)
        _want(images.dtype == "uint8", f"images must be uint8, not {images.dtype}")
        _want(
            images.shape == (len(indices), resolution, resolution, 3),
            f"images must be [B, H, W, 3], not {images.shape}",
        )
        _want(
            (dataset.images(indices) == images).all(), "the same indices must give the same images"
        )
        varied = dataset.images(indices, [7] * len(indices))
        _want(
            (dataset.images(indices, [7] * len(indices)) == varied).all(),
            "the same seeds must give the same images",
        )
        _want(
            all(isinstance(dataset.name(index), str) for index in indices), "name must return text"
        )
        _want(isinstance(dataset.problems, dict), "problems must be a dict")
    first = {
        split: {dataset.images([i]).tobytes() for i in range(min(64, len(dataset)))}
        for split, dataset in sets.items()
    }
    _want(not first["train"] & first["heldout"], "no held-out image may be a training image")
    _want(
        len({dataset.fingerprint for dataset in sets.values()}) == 1,
        "the fingerprint must be the same for all splits",
    )


def _part(kind: str, name: str, options: dict[str, Any]) -> Part:
    return Part(kind, name, resolve(registry().component(kind, name).config, options))


def _want(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _shape(what: str, tensor: Tensor, shape: tuple[int, ...] | torch.Size) -> None:
    _want(
        tuple(tensor.shape) == tuple(shape),
        f"{what} must have shape {list(shape)}, not {list(tensor.shape)}",
    )


def _finite(what: str, tensor: Tensor | None) -> None:
    _want(tensor is not None and bool(tensor.isfinite().all()), f"{what} must be finite")


def _close(what: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
    _shape(what, found, wanted.shape)
    _want(found.dtype == wanted.dtype, f"{what} must be {wanted.dtype}, not {found.dtype}")
    _want(
        torch.allclose(found, wanted, atol=1e-5, rtol=1e-4),
        f"{what} must equal {meaning}; they differ by up to {(found - wanted).abs().max():.3g}",
    )


def _check_reload(
    module: nn.Module, other: nn.Module, result: Callable[[nn.Module], Tensor]
) -> None:
    """A second instance with the first one's saved state must do the same in eval mode."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        state = distinct_state(module)
        save_file({name: value.contiguous() for name, value in state.items()}, file)
        _want(
            state.keys() == distinct_state(other).keys(),
            "a second instance with the same options must have tensors of the same names",
        )
        other.load_state_dict(load_file(file), strict=False)
    with torch.no_grad():
        _want(
            torch.equal(result(module.eval()), result(other.eval())),
            "what is saved and loaded must do the same",
        )


def _check_training(quantizer: nn.Module, channels: int) -> None:
    """Steps enough for whatever a quantizer does now and then, each with its gradient."""
    for step in range(20):
        latents = torch.randn(3, channels, 4, 6, requires_grad=True)
        out = quantizer(latents * (1 + step))
        (out.latents.square().sum() + out.loss).backward()
        _finite(f"the loss of training step {step}", out.loss)


def _check_processes(name: str, channels: int, options: dict[str, Any], processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train_one, (folder, name, channels, options, processes), nprocs=processes)
        states = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(processes)]
    for key, value in states[0].items():
        same = all(torch.equal(value, state[key]) for state in states[1:])
        _want(
            same,
            f"'{key}' must stay the same on all processes; "
            "genkit.distributed has what adds up over them",
        )


def _train_one(
    rank: int, folder: str, name: str, channels: int, options: dict[str, Any], processes: int
) -> None:
    """One process that quantizes latents of its own, another number of them than the others."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
    )
    torch.manual_seed(0)
    quantizer = _part("quantizer", name, options).build(Level(0, channels, 4))
    torch.manual_seed(1 + rank)
    for _ in range(3):
        quantizer(torch.randn(2 + rank, channels, 4, 4))
    save_file(
        {key: value.contiguous() for key, value in distinct_state(quantizer).items()},
        Path(folder) / f"{rank}.safetensors",
    )
    dist.destroy_process_group()
