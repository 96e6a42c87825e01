"""The VQ step: nearest code, straight-through, running averages of the codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.jobs import table
from benchmarks.speed.peers import OneHotQuantizer, UnitQuantizer
from benchmarks.speed.timing import (
    Settings,
    Work,
    cell,
    interleaved,
    limits,
    peak_memory,
    ratios,
    spread,
)

TITLE = "Nearest-code search and the VQ step"

SIDE = 16
PRODUCT, OURS = "product", "genkit"
ONE_HOT, UNIT = "VQ-VAE-2's, rewritten", "LlamaGen's, rewritten"
# The package needed by each.
PACKAGES = {
    "vector-quantize-pytorch": "vector_quantize_pytorch",
    "taming-transformers": "taming",
    "diffusers": "diffusers",
    ONE_HOT: "torch",
    UNIT: "torch",
}
# Libraries that compute the full matrix of distances hold several such matrices; each is limited to
# 1 GB. A one-hot matrix holds integers of twice the size.
MOST_DISTANCES = 2**28
# A step takes latents `[B, C, h, w]` and returns the quantized latents and the indices.
Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def measure(settings: Settings) -> dict[str, Any]:
    cells = (
        [(1024, 512, 64), (4096, 1024, 64)]
        if settings.quick
        else [
            (n, k, d) for d in (64, 256) for n in (1024, 16384, 65536) for k in (512, 1024, 16384)
        ]
    )
    peers = [name for name, package in PACKAGES.items() if find_spec(package)]
    return {
        "missing": [name for name in PACKAGES if name not in peers],
        "limits": limits(settings.device),
        "cells": [_cell(*size, peers, settings) for size in cells],
        "exact": _exactness(peers, settings),
        "memory": _memory(peers, settings),
        "entropy": _entropy(settings),
    }


def _cell(n: int, k: int, d: int, peers: list[str], settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    codebook = torch.randn(k, d, device=settings.device)
    latents = torch.randn(n // SIDE**2, d, SIDE, SIDE, device=settings.device)
    peers = [name for name in peers if n * k * (2 if name == ONE_HOT else 1) <= MOST_DISTANCES]
    steps = {name: _step(name, codebook, latents) for name in [OURS, *peers]}
    differing = _same_work(steps, latents, codebook)
    flat = latents.permute(0, 2, 3, 1).reshape(n, d)
    distances = torch.empty(n, k, device=settings.device)
    work: dict[str, Work] = {PRODUCT: lambda: torch.mm(flat, codebook.t(), out=distances)}
    for name, step in steps.items():
        # Each gets the memory layout that its own network produces.
        own = latents.to(memory_format=torch.channels_last) if name == OURS else latents.clone()
        own.requires_grad_()
        work[name] = lambda step=step, own=own: step(own)
    seconds = 1.0 if settings.quick else 3.0
    times = interleaved(work, seconds, rounds=(3, 100))
    multiples = ratios(times, PRODUCT)
    over = {name: [a / b for a, b in zip(times[name], times[OURS], strict=True)] for name in peers}
    return {
        "size": [n, k, d],
        "product_ms": spread(times[PRODUCT])["median"] * 1e3,
        "tflops": 2 * n * k * d / spread(times[OURS])["median"] / 1e12,
        "multiples": {name: multiples[name] for name in [OURS, *peers]},
        "over_ours": {name: spread(each) for name, each in over.items()},
        "differing": differing,
    }


def _step(name: str, codebook: Tensor, latents: Tensor) -> Step:
    """A module's step in training mode, with a copy of the codebook."""
    k, d = codebook.shape
    device = codebook.device
    if name == OURS:
        from genkit_avqvae import VQOptions
        from genkit_avqvae.vq import VectorQuantizer

        from genkit import Level

        # The others do not revive codes by default.
        options = VQOptions(codebook_size=k, kmeans_start=False, revive=0)
        ours = VectorQuantizer(options, Level(index=0, channels=d, stride=4)).to(device).train()
        ours.codebook.copy_(codebook)
        return lambda x: ours(x)[:2]
    if name == "vector-quantize-pytorch":
        from vector_quantize_pytorch import VectorQuantize

        theirs = VectorQuantize(
            dim=d, codebook_size=k, decay=0.99, commitment_weight=0.25, accept_image_fmap=True
        ).to(device)
        theirs.train()._codebook.embed.data.copy_(codebook[None])
        return lambda x: theirs(x)[:2]
    if name in (ONE_HOT, UNIT):
        rewritten = (OneHotQuantizer if name == ONE_HOT else UnitQuantizer)(k, d).to(device)
        rewritten.train().place(codebook)
        return lambda x: rewritten.quantize(x)[::2]
    if name == "taming-transformers":
        from taming.modules.vqvae.quantize import VectorQuantizer2 as Taming

        other: torch.nn.Module = Taming(k, d, beta=0.25, legacy=False)
    else:
        from diffusers.models.autoencoders.vq_model import VectorQuantizer as Diffusers

        other = Diffusers(k, d, beta=0.25, legacy=False)
    other.to(device).train().embedding.weight.data.copy_(codebook)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, (_, _, indices) = other(x)
        return quantized, indices

    return step


def _same_work(steps: dict[str, Step], latents: Tensor, codebook: Tensor) -> dict[str, int]:
    """The number of the first latents whose index differs from float64; checks their codes too."""
    few = latents[:4]
    truths = _truths(list(steps), few, codebook)
    differing = {}
    for name, step in steps.items():
        quantized, indices = step(few)
        codes = F.normalize(codebook) if name == UNIT else codebook
        flat = quantized.permute(0, 2, 3, 1).flatten(0, 2)
        assert torch.allclose(flat, codes[indices.flatten()], atol=1e-5), name
        differing[name] = int((indices.flatten() != truths[name]).sum())
        assert differing[name] <= len(flat) // 1000, name
    return differing


def _truths(names: list[str], latents: Tensor, codebook: Tensor) -> dict[str, Tensor]:
    """The right indices for each; LlamaGen's search is among normalized vectors."""
    flat, codes = latents.permute(0, 2, 3, 1).flatten(0, 2).double(), codebook.double()
    plain = _truth(flat, codes)
    unit = _truth(F.normalize(flat), F.normalize(codes)) if UNIT in names else plain
    return {name: unit if name == UNIT else plain for name in names}


def _truth(flat: Tensor, codes: Tensor) -> Tensor:
    """The nearest code by exact differences, among the few nearest by a float64 product."""
    near = (codes.square().sum(1) - 2 * flat @ codes.t()).topk(min(8, len(codes)), largest=False)
    distances = (flat[:, None] - codes[near.indices]).square().sum(2)
    return near.indices.gather(1, distances.argmin(1, keepdim=True)).squeeze(1)


def _exactness(peers: list[str], settings: Settings) -> dict[str, dict[str, int]]:
    """The number of indices, out of 4,096, that differ from a float64 search."""
    torch.manual_seed(0)
    k, d, n = 1024, 64, 4096
    ordinary = torch.randn(k, d, device=settings.device)
    small = (2 * torch.rand(k, d, device=settings.device) - 1) / k
    picked = torch.randint(k, (n,), device=settings.device)
    # Pairs of close codes, between which a nearby latent must be decided.
    pairs = ordinary[: k // 2].repeat(2, 1)
    pairs[k // 2 :] += 2e-4 * torch.randn_like(pairs[k // 2 :])
    cases = {
        "spread as the codes": (torch.randn(n, d, device=settings.device), ordinary),
        "within 1e-4 of a code, codes in near pairs": (
            pairs[picked] + 1e-4 / d**0.5 * torch.randn(n, d, device=settings.device),
            pairs,
        ),
        "codes of ±1/K, latents beside them": (
            small[picked] + 0.1 / k * torch.randn(n, d, device=settings.device),
            small,
        ),
    }
    wrong: dict[str, dict[str, int]] = {}
    for case, (flat, codebook) in cases.items():
        latents = flat.view(-1, SIDE, SIDE, d).permute(0, 3, 1, 2).contiguous()
        truths = _truths([OURS, *peers], latents, codebook)
        wrong[case] = {
            name: int((_step(name, codebook, latents)(latents)[1].flatten() != truth).sum())
            for name, truth in truths.items()
        }
    return wrong


def _memory(peers: list[str], settings: Settings) -> dict[str, Any]:
    n, k, d = (4096, 512, 64) if settings.quick else (16384, 1024, 64)
    codebook = torch.randn(k, d, device=settings.device)
    latents = torch.randn(n // SIDE**2, d, SIDE, SIDE, device=settings.device)
    steps = {name: _step(name, codebook, latents) for name in [OURS, *peers]}
    held = {
        name: peak_memory(lambda step=step: step(latents)) / 2**20 for name, step in steps.items()
    }
    return {"size": [n, k, d], "megabytes": held, "matrix": n * k * 4 / 2**20}


def _entropy(settings: Settings) -> dict[str, Any]:
    """The time of LlamaGen's step, in products, without and with its entropy term."""
    n, k, d = (1024, 512, 64) if settings.quick else (16384, 1024, 64)
    latents = torch.randn(n // SIDE**2, d, SIDE, SIDE, device=settings.device, requires_grad=True)
    flat = latents.detach().permute(0, 2, 3, 1).reshape(n, d)
    codebook = torch.randn(k, d, device=settings.device)
    distances = torch.empty(n, k, device=settings.device)
    work: dict[str, Work] = {PRODUCT: lambda: torch.mm(flat, codebook.t(), out=distances)}
    for name, entropy in (("without", False), ("with", True)):
        module = UnitQuantizer(k, d, entropy).to(settings.device).train()
        work[name] = partial(module.quantize, latents)
    multiples = ratios(interleaved(work, 1.0 if settings.quick else 4.0), PRODUCT)
    return {"size": [n, k, d], **{name: multiples[name] for name in ("without", "with")}}


def page(figures: dict[str, Any], folder: Path) -> str:
    cells = figures["cells"]
    names = list(figures["memory"]["megabytes"])
    peers = names[1:]
    rows = []
    for each in cells:
        n, k, d = each["size"]
        multiples = [
            cell(each["multiples"][name]) if name in each["multiples"] else "–" for name in names
        ]
        fastest = min((other["median"] for other in each["over_ours"].values()), default=0)
        rows.append(
            [
                f"{n:,} x {k:,} x {d}",
                f"{each['product_ms']:.2f}",
                *multiples,
                f"{fastest:.1f}" if fastest else "–",
            ]
        )
    ours = [each["multiples"][OURS]["median"] for each in cells]
    mean = math.exp(sum(map(math.log, ours)) / len(ours))
    parts = [
        "One step in training mode: the nearest code of each latent, the loss and the "
        "straight-through estimator. For genkit, vector-quantize-pytorch and VQ-VAE-2 it includes "
        "the running averages of the codes; the codes of the others learn in the backward pass, "
        "which is not measured. Times are relative to one float32 matrix product of N x d by "
        "d x K into a preallocated buffer. Before timing, every index and every code was compared "
        "with a float64 search. "
        f"Over all sizes genkit takes {mean:.2f} products (geometric mean), "
        f"{max(ours):.2f} at most.",
        table(
            ["N x K x d", "product, ms", *names, "fastest other / genkit"],
            rows,
        ),
        "A dash marks sizes at which a library would hold an N x K matrix of over 1 GB. "
        "VQ-VAE-2 also holds one of 8-byte integers.",
        "Indices that differ from a float64 search, for 4,096 latents and 1,024 codes of "
        "dimension 64:",
        table(
            ["latents", *names],
            [[case, *(wrong[name] for name in names)] for case, wrong in figures["exact"].items()],
        ),
        _memory_line(figures["memory"]),
        _limits_line(figures["limits"], cells),
    ]
    if entropy := figures.get("entropy"):
        parts.insert(1, _rewritten_line(entropy))
    if over := [each["over_ours"] for each in cells if each["over_ours"]]:
        least = {name: min(each[name]["median"] for each in over if name in each) for name in peers}
        times = "; ".join(f"{name} {value:.1f}" for name, value in least.items())
        parts.insert(1, f"The smallest multiple of genkit's time over all sizes: {times}.")
    if figures["missing"]:
        parts.append(f"Not installed, so not measured: {', '.join(figures['missing'])}.")
    _plot(cells, names, folder / "search.png")
    parts.append("![Multiples of the bare product](performance/search.png)")
    return "\n\n".join(parts)


def _rewritten_line(entropy: dict[str, Any]) -> str:
    n, k, d = entropy["size"]
    return (
        "No package contains the quantizers of VQ-VAE-2 (in rosinality's implementation) and of "
        "LlamaGen, so both are rewritten here from their publications. LlamaGen searches among "
        "normalized vectors, and so does its float64 search. It also counts the used codes. Its "
        "entropy loss has weight 0 as published and is left out, although its own code computes "
        f"it: at {n:,} x {k:,} x {d} that takes "
        f"{cell(entropy['with'])} products instead of {cell(entropy['without'])}."
    )


def _memory_line(memory: dict[str, Any]) -> str:
    n, k, d = memory["size"]
    held = "; ".join(f"{name} {value:.0f} MB" for name, value in memory["megabytes"].items())
    return (
        f"Peak memory of tensors in a step of {n:,} x {k:,} x {d}: {held}. "
        f"The N x K matrix alone takes {memory['matrix']:.0f} MB."
    )


def _limits_line(limits: dict[str, float], cells: list[dict[str, Any]]) -> str:
    best = max(cells, key=lambda each: each["tflops"])
    # A step must at least read the latents and the codes and write the quantized latents.
    n, k, d = best["size"]
    per_byte = 2 * n * k * d / (4 * (2 * n * d + k * d))
    return (
        f"The machine reaches {limits['tflops']:.2f} TFLOP/s in a bfloat16 product, and "
        f"{limits['gigabytes_per_second']:.0f} GB/s in a copy. Counting the multiplications and "
        f"additions of the product, the step of {n:,} x {k:,} x {d} reaches "
        f"{best['tflops']:.2f} TFLOP/s, {best['tflops'] / limits['tflops']:.0%} of that. It does "
        f"{per_byte:,.0f} operations per byte that it moves, so at "
        f"{best['tflops'] * 1e3 / per_byte:.2f} GB/s memory is not the limit."
    )


def _plot(cells: list[dict[str, Any]], names: list[str], place: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for number, name in enumerate(names):
        points = [
            (at + (number - (len(names) - 1) / 2) * 0.8 / len(names), each["multiples"][name])
            for at, each in enumerate(cells)
            if name in each["multiples"]
        ]
        axes.errorbar(
            [at for at, _ in points],
            [value["median"] for _, value in points],
            [
                [value["median"] - value["low"] for _, value in points],
                [value["high"] - value["median"] for _, value in points],
            ],
            fmt="o",
            markersize=5,
            label=name,
        )
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_yscale("log")
    ticks = [1, 2, 5, 10, 20, 50]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0.4, 60)
    sizes = ["\n".join(_short(size) for size in each["size"]) for each in cells]
    axes.set_xticks(range(len(cells)), sizes)
    axes.set_xlabel("N, K, d", loc="left")
    axes.set_ylabel("times the bare product")
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(place, dpi=110)
    plt.close(figure)


def _short(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 else str(size)
