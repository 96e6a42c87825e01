"""The memory of a training step by account, and what recomputing and compiling change."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.jobs import table
from benchmarks.speed.timing import Settings, Work, cell, interleaved, peak_memory, ratios
from genkit.interfaces import Quantized
from genkit.run.options import layered, resolve_run
from genkit.tokenizer import Tokenizer
from genkit.training.recompute import recompute

TITLE = "Memory, recomputing and compiling"

# A card to fit, in GiB, and what CUDA and cuDNN take of it by themselves, a generous guess.
CARD, TAKEN = 24, 2
_GIB = 2**30
# Bytes of a weight, and of Adam's two moments of it.
_WEIGHT, _MOMENTS = 4, 8
# The layers of VGG16 that LPIPS reads.
_VGG = 30


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made inside: those alive `now`, and at the `peak`.

    It works on tensors without data too, which have a size all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A result may be a view of a tensor from outside, such as of a weight.
        self._add((args, kwargs), counted=False)
        made = func(*args, **(kwargs or {}))
        self._add(made, counted=True)
        return made

    def _add(self, tensors: Any, counted: bool) -> None:
        for each in tree_leaves(tensors):
            storage = each.untyped_storage() if isinstance(each, Tensor) else None
            if storage is not None and storage._cdata not in self._known:
                self._known[storage._cdata] = storage.nbytes() if counted else 0
                self.now += self._known[storage._cdata]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self.now -= self._known.pop(key)


class _Through(nn.Module):
    """Stands in for a quantizer, whose search needs data; of its latents it keeps as much."""

    codebook_size = 1024

    def forward(self, latents: Tensor) -> Quantized:
        indices = latents.new_zeros((len(latents), *latents.shape[2:]), dtype=torch.int64)
        return Quantized(latents * 1, indices, latents.square().mean())


def account(settings: Mapping[str, Any], bf16: bool, again: bool, vgg: bool) -> dict[str, float]:
    """Bytes of a run's training step by parts, from tensors without data.

    The step is that of `genkit train`: the tokenizer's losses with an adaptive adversarial weight,
    its gradient, then the discriminator's step. `again` recomputes blocks. `vgg` adds VGG16 in
    float32, as LPIPS does. In bfloat16 the dtypes follow a CPU's autocast, which agrees with
    CUDA's for these networks.
    """
    run = resolve_run(layered("vqgan", settings))
    with FakeTensorMode():
        tokenizer, judge = Tokenizer(run.tokenizer), run.discriminator.build(3)
        for level in range(len(tokenizer.levels)):
            tokenizer.quantizers[level] = _Through()
        for net in (tokenizer.encoder, tokenizer.decoder, judge) if again else ():
            recompute(net)
        seen = _vgg() if vgg else None
        live = Live()
        with live:
            images = torch.empty(run.batch_size, 3, *run.size)
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                made, _, quantization = tokenizer(images)
            made, kept = made.float(), live.now
            _gradients(made, images, quantization, judge, seen, bf16)
            tokenizer.zero_grad()
            first, live.peak = live.peak, 0
            gc.collect()
            made = made.detach()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                real, false = judge(images).float(), judge(made).float()
            (F.relu(1 - real).mean() + F.relu(1 + false).mean()).backward()
    counts = [sum(each.numel() for each in net.parameters()) for net in (tokenizer, judge)]
    parts: dict[str, float] = {
        "weights": counts[0] * _WEIGHT,
        "moments": counts[0] * _MOMENTS,
        "average": counts[0] * _WEIGHT * bool(run.ema),
        "discriminator": counts[1] * (_WEIGHT + _MOMENTS),
        "perceptual": sum(each.numel() for each in seen.parameters()) * _WEIGHT if seen else 0,
        "step": max(first, live.peak),
    }
    return {**parts, "total": sum(parts.values()), "kept": kept}


def _gradients(
    made: Tensor,
    images: Tensor,
    quantization: Tensor,
    judge: nn.Module,
    seen: nn.Module | None,
    bf16: bool,
) -> None:
    likeness = F.l1_loss(made, images)
    if seen:
        with torch.no_grad():
            wanted = seen(images)
        likeness = likeness + F.mse_loss(seen(made), wanted)
    judge.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        verdict = -judge(made).float().mean()
    judge.requires_grad_(True)
    norms = [
        torch.autograd.grad(loss, made, retain_graph=True)[0].square().sum()
        for loss in (likeness, verdict)
    ]
    (likeness + quantization + verdict * (norms[0] / norms[1])).backward()


def _vgg() -> nn.Module:
    import torchvision

    net: nn.Module = torchvision.models.vgg16().features[:_VGG]
    return net.requires_grad_(False)


# The models whose steps are taken on this machine.
_MODELS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "the default, 64 px": (None, {}),
    "`vqgan` of half the width, 64 px": (
        "vqgan",
        {
            "encoder": {"width": [64, 64, 128, 128, 256]},
            "decoder": {"width": [64, 64, 128, 128, 256]},
            "discriminator": "none",
            "resolution": 64,
            "batch_size": 4,
        },
    ),
}
_WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "recompute": {"recompute": True},
    "compile": {"compile": True},
}


def measure(settings: Settings) -> dict[str, Any]:
    small = {"resolution": 64, "batch_size": 2} if settings.quick else {}
    accounts = [
        {"bf16": bf16, "again": again, **account(small, bf16, again, vgg=True)}
        for bf16, again in itertools.product((False, True), repeat=2)
    ]
    steps = {}
    for name, (preset, changes) in _MODELS.items():
        works = {way: _step(preset, changes | more, settings) for way, more in _WAYS.items()}
        times = interleaved(works, seconds=30, rounds=(1, 1) if settings.quick else (7, 50))
        steps[name] = {
            "ratios": ratios(times, "as it is"),
            "bytes": {way: peak_memory(each) for way, each in works.items()},
        }
    return {"accounts": accounts, "steps": steps}


def _step(preset: str | None, changes: Mapping[str, Any], settings: Settings) -> Work:
    from accelerate import Accelerator

    from genkit.training.tokenizer import TokenizerTask
    from genkit.training.trainer import Trainer

    run = resolve_run(layered(preset, changes))
    accelerator = Accelerator(cpu=settings.device == "cpu")
    trainer = Trainer(run, accelerator, TokenizerTask(run, accelerator))
    trainer.learner.module.train()
    shape = (run.batch_size, *run.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return lambda: trainer.step([pixels], 0)


_PARTS = {
    "weights": "weights",
    "moments": "Adam's moments",
    "discriminator": "discriminator, with moments",
    "perceptual": "VGG16, as in LPIPS",
    "step": "the step at its peak, gradients included",
    "total": "**in all**",
    "kept": "of the step: kept from the forward pass of encoder and decoder",
}


def page(figures: Mapping[str, Any], folder: Path) -> str:
    accounts = figures["accounts"]
    heads = [
        ("bf16" if each["bf16"] else "float32") + ", `--recompute`" * each["again"]
        for each in accounts
    ]
    rows = [
        [text, *(f"{each[key] / _GIB:.2f}" for each in accounts)] for key, text in _PARTS.items()
    ]
    fits = [
        ["fits", *("yes" if each["total"] < (CARD - TAKEN) * _GIB else "no" for each in accounts)]
    ]
    steps = [
        [
            name,
            *(
                f"{cell(each['ratios'][way])}, {each['bytes'][way] / 2**20:,.0f} MB"
                for way in each["ratios"]
            ),
        ]
        for name, each in figures["steps"].items()
    ]
    return "\n\n".join(
        [
            "**By account, not measured on a GPU.** GiB of the preset `vqgan` at 256 pixels with "
            "batches of 16, its discriminator and LPIPS's network: a step on tensors without data, "
            "which counts every tensor from its making to its release. The quantizer, a few MB, is "
            "left out, and so is the scratch memory of CUDA and cuDNN: a model fits a card of "
            f"{CARD} GiB if {TAKEN} GiB are left. The preset keeps no average of its weights; one "
            "takes as much as the weights.",
            table(["GiB", *heads], [*rows, *fits]),
            "**Measured on this machine.** A training step relative to the same step without "
            "these options, round by round, and the peak memory of its tensors beyond weights and "
            "moments. `--recompute` computes every block's forward pass twice: about a third more "
            "arithmetic. `--compile` leaves quantizers, optimizer and loop as they are.",
            table(["", *next(iter(figures["steps"].values()))["ratios"]], steps),
        ]
    )
