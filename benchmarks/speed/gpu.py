"""genkit alone on a GPU: the search, attention, training steps, the paper's models, and priors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import table
from benchmarks.speed import ours
from benchmarks.speed.sample import LAYOUT, prior
from benchmarks.speed.timing import Settings, Work, cell, spread
from genkit.interfaces import Rules
from genkit.layout import Grid, Layout
from genkit.ops import nearest_codes, sigmoid_attention
from genkit.run.options import layered, resolve_run
from genkit.settings import choose
from genkit.training.prior import Fit
from genkit.training.processes import make_accelerator, run_directory
from genkit.training.tokenizer import TokenizerTask
from genkit.training.trainer import Trainer

TITLE = "genkit on a GPU"
WITHOUT = "Not measured on a GPU."

# Latents, codes and channels; images, pixels and channels.
_SEARCHES = ((4096, 512, 64), (65536, 1024, 64), (65536, 16384, 256))
_ATTENTIONS = ((16, 256, 32), (16, 4096, 32))
_MODELS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "default, 64 px": (None, {}),
    "default, 64 px, bf16": (None, {"mixed_precision": "bf16"}),
    "default, 64 px, bf16, batch 256": (None, {"mixed_precision": "bf16", "batch_size": 256}),
    "default, 256 px": (None, {"resolution": 256}),
    "vqgan, 256 px, bf16": ("vqgan", {"resolution": 256, "mixed_precision": "bf16"}),
    **{
        f"{name}, 256 px{note}": (f"{name}-exact", each)
        for name in ("h-vqvae", "ah-vqvae", "a-vqvae")
        for note, each in (("", {}), (", bf16", {"mixed_precision": "bf16"}))
    },
}
# The paper's seconds for an epoch on an RTX 3090, by model, and the images of an epoch.
_PAPER = {"h-vqvae": 923, "ah-vqvae": 1195, "a-vqvae": 815}
_EPOCH = 24_000
_SMALL = Layout([Grid(2, 2, 1, 8)])
_TINY = {"resolution": 32, "batch_size": 2, "validation_images": 2, "data": {"heldout": 2}}


def measure(settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator()
    assert device
    quick = settings.quick
    searches = ((300, 40, 8),) if quick else _SEARCHES
    attentions = ((2, 64, 8),) if quick else _ATTENTIONS
    models = {k: _MODELS[k] for k in ("default, 64 px", "a-vqvae, 256 px")} if quick else _MODELS
    return {
        "search": {" x ".join(map(str, s)): _timed(_search(s, device), quick) for s in searches},
        "attention": {
            " x ".join(map(str, s)): _timed(_attention(s, device), quick) for s in attentions
        },
        "steps": {name: _step(*each, quick) for name, each in models.items()},
        "priors": {
            "training step, batch 16": _timed(_prior_step(device, 2 if quick else 16), quick),
            "drawing 16 images": _timed(_drawing(device, 1 if quick else 16, quick), quick),
        },
    }


def page(figures: Mapping[str, Any], folder: Path) -> str:
    steps = []
    for name, each in figures["steps"].items():
        paper = next((s for model, s in _PAPER.items() if name.startswith(model)), None)
        epoch = f"{_EPOCH / each['images_per_second']:,.0f}" if paper else "–"
        row = [name, cell(each["milliseconds"], 1), f"{each['images_per_second']:,.0f}"]
        memory = each["memory_mb"]
        steps.append([*row, epoch, paper or "–", f"{memory:,.0f}" if memory else "–"])
    heads = {"search": "N x K x d", "attention": "B x N x d", "priors": "prior"}
    parts = [
        "Milliseconds of the host's clock, from an idle device to an idle device. The paper's "
        "seconds were measured on an RTX 3090, for an epoch of 24,000 images.",
        table(
            ["step", "ms", "images per second", "s an epoch", "the paper's", "memory, MB"], steps
        ),
    ]
    for name, head in heads.items():
        rows = [[what, cell(each)] for what, each in figures[name].items()]
        parts.append(table([head, "ms"], rows))
    return "\n\n".join(parts)


def _timed(work: Work, quick: bool) -> dict[str, float]:
    """Milliseconds of the work, after two rounds of warm-up."""
    for _ in range(1 if quick else 3):
        work()
    _finish()
    times: list[float] = []
    ends = time.perf_counter() + (0 if quick else 10)
    while len(times) < 2 or (len(times) < 100 and time.perf_counter() < ends):
        start = time.perf_counter()
        work()
        _finish()
        times.append(1000 * (time.perf_counter() - start))
    return spread(times)


def _finish() -> None:
    """Wait until the device has done everything."""
    device = torch.accelerator.current_accelerator()
    assert device
    torch.get_device_module(device).synchronize()


def _search(size: tuple[int, int, int], device: torch.device) -> Work:
    count, codes, dim = size
    latents, codebook = (torch.randn(n, dim).to(device) for n in (count, codes))
    return lambda: nearest_codes(latents, codebook)


def _attention(size: tuple[int, int, int], device: torch.device) -> Work:
    queries, keys, values = (torch.randn(size).to(device).requires_grad_() for _ in range(3))
    return lambda: sigmoid_attention(queries, keys, values, -5.0).sum().backward()


def _step(preset: str | None, changes: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """A step of training on one batch, which leaves out reading images."""
    ours.forget_precision()
    run = resolve_run(layered(preset, {"workers": 0}, changes, _TINY if quick else {}))
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(run, Path(folder))
        assert run_directory(accelerator)
        trainer = Trainer(run, accelerator, TokenizerTask(run, accelerator))
    trainer.learner.module.train()
    pixels = torch.randint(0, 256, (run.batch_size, *run.size, 3), dtype=torch.uint8)
    cuda = accelerator.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = _timed(_repeated(lambda step: trainer.step([pixels], step)), quick)
    return {
        "milliseconds": milliseconds,
        "images_per_second": 1000 * run.batch_size / milliseconds["median"],
        "memory_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    }


def _repeated(step: Callable[[int], object]) -> Work:
    """Steps with ascending numbers."""
    number = -1

    def work() -> None:
        nonlocal number
        number += 1
        step(number)

    return work


def _prior_step(device: torch.device, batch: int) -> Work:
    model = Fit(prior()).to(device).train()
    optimizer = choose("optimizer", {"name": "muon"}).build(model, 1e-3, torch.float32)
    sequence = torch.randint(512, (batch, len(LAYOUT))).to(device)
    classes = (torch.arange(batch) % 10).to(device)

    def work() -> None:
        model(sequence, classes, 0).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def _drawing(device: torch.device, batch: int, quick: bool) -> Work:
    model = (prior(_SMALL) if quick else prior()).to(device)
    classes = (torch.arange(batch) % 10).to(device)

    def work() -> None:
        generators = [torch.Generator().manual_seed(number) for number in range(batch)]
        with torch.no_grad():
            model.sample(classes, None, generators, Rules())

    return work
