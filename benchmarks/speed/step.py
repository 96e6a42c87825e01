"""The training step: the overhead of our loop, and steps per second compared with the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.jobs import table
from benchmarks.speed import ours, peers
from benchmarks.speed.timing import Settings, Work, cell, interleaved, ratios, spread
from genkit.data.order import DrawSampler
from genkit.images import from_pixels
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.tokenizer import Tokenizer
from genkit.training.ema import EMA
from genkit.training.optimizers import learning_rate, optimizer
from genkit.training.seeds import seed
from genkit.training.tokenizer import TokenizerTask
from genkit.training.trainer import Trainer

TITLE = "The training step"
BASELINE = "VQ-VAE-2 as published"

# So small that a step is almost all overhead.
TINY: dict[str, Any] = {
    "resolution": 32,
    "batch_size": 4,
    "encoder": {"levels": 2, "width": [8], "base_channels": 8, "latent_channels": 8},
    "decoder": {"width": [8]},
    "quantizer": {"codebook_size": 64},
}
# Warm-up steps, which include the k-means start and the choice of kernels.
_WARM = 10


def measure(settings: Settings) -> dict[str, Any]:
    steps = {"the default": (ours.DEFAULT, 16, 60), "a tiny model": (TINY, 30, 400)}
    return {
        "overhead": {
            name: overhead(chosen, few if settings.quick else many)
            for name, (chosen, few, many) in steps.items()
        },
        "speed": speed(settings, 16, 64),
        "left_out": peers.left_out(),
    }


class Bare:
    """A hand-written loop with only what changes the weights, on the same images."""

    def __init__(self, run: TokenizerRun) -> None:
        self.run, self.number = run, 0
        self.device = ours.device()
        seed(run.seed)
        self.data = run.data.build(run.size, run.seed).split("train")
        self.draws = iter(DrawSampler(run, len(self.data), 0, 1, 0))
        self.model = Tokenizer(run).to(memory_format=torch.channels_last).to(self.device).train()
        self.optimizer = optimizer(run, run.optimizer, run.lr)(self.model)
        self.average = EMA(self.model, run.ema, self.device)

    def step(self) -> None:
        run = self.run
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, run.lr)(self.number)
        indices, seeds = zip(*next(self.draws), strict=True)
        pixels = torch.from_numpy(self.data.images(indices, seeds))
        images = from_pixels(pixels.to(self.device)).to(memory_format=torch.channels_last)
        out = self.model(images)
        loss = run.reconstruction_weight * F.mse_loss(out.images, images) + out.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), run.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()
        self.number += 1


def overhead(chosen: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The loop of `genkit train` and the bare one, in alternating steps.

    Our time includes everything between two steps: reading images, figures, and a row of metrics
    every 20 steps.
    """
    never = {"validate_every": 10**6, "checkpoint_every": 10**6, "validation_images": 16}
    run = resolve_run(layered(None, chosen, never, {"steps": steps}))
    bare = Bare(run)
    seconds: list[float] = []

    def in_turn() -> None:
        start = ours.clock()
        bare.step()
        seconds.append(ours.clock() - start)

    found = ours.timed(run, in_turn)
    theirs = bare.average.module.state_dict()
    # The last step includes a validation.
    counted = {"ours": found.seconds[_WARM:-1], "bare": seconds[_WARM:-1]}
    pairs = list(zip(counted["ours"], counted["bare"], strict=True))
    return {
        "largest_difference": max(
            float((each.float() - theirs[name].cpu().float()).abs().max())
            for name, each in found.state.items()
        ),
        "milliseconds": {name: spread([1e3 * t for t in each]) for name, each in counted.items()},
        "added_milliseconds": spread([1e3 * (a - b) for a, b in pairs]),
        "ratio": spread([a / b for a, b in pairs]),
        "ratio_of_sums": sum(counted["ours"]) / sum(counted["bare"]),
    }


def models() -> dict[str, dict[str, Any]]:
    """Our models to time, float32 before bf16: see `forget_precision`."""
    large, same = "genkit, the default", "genkit, as large as VQ-VAE-2"
    models = {large: ours.DEFAULT, same: ours.SAME_SIZE}
    halved = {f"{name}, bf16": {**each, "mixed_precision": "bf16"} for name, each in models.items()}
    return {**models, **halved}


def speed(settings: Settings, batch: int, side: int) -> dict[str, Any]:
    """Alternating steps of ours and of the peers on the same batch of uint8 pixels."""
    device = ours.device()
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    work: dict[str, Work] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, chosen in models().items():
        trainer = _trainer({**chosen, "batch_size": batch, "resolution": side})
        facts[name] = _facts(trainer.learner.module, from_pixels(pixels.to(device)))
        facts[name]["bits_per_pixel"] = trainer.learner.module.bits_per_pixel
        work[name] = _step_of(trainer, pixels)
    for name, make in peers.peers().items():
        torch.manual_seed(0)
        peer = peers.PeerStep(make().to(device))
        facts[name] = _facts(peer.model, from_pixels(pixels.to(device)))
        facts[name]["bits_per_pixel"] = peers.bits_per_pixel(name)
        work[name] = _peer_step(peer, pixels, device)
    times = interleaved(work, 0.0 if settings.quick else 120.0, (3, 40))
    relative = ratios(times, BASELINE)
    return {
        name: {**facts[name], "seconds": spread(times[name]), "ratio": relative[name]}
        for name in work
    }


def _trainer(settings: Mapping[str, Any]) -> Trainer:
    from genkit.training.processes import make_accelerator

    ours.forget_precision()
    run = resolve_run(layered(None, settings))
    accelerator = make_accelerator(run, Path(tempfile.gettempdir()))
    trainer = Trainer(run, accelerator, TokenizerTask(run, accelerator))
    trainer.learner.module.train()
    return trainer


def _step_of(trainer: Trainer, pixels: Tensor) -> Work:
    """One complete step of ours, including the recording of its figures."""
    from genkit.training.meter import Meter

    meter = Meter("images", trainer.accelerator.device)
    steps = iter(range(10**9))

    def step() -> None:
        done = trainer.step([pixels], next(steps))
        for passed, figures in zip(done.passes, done.figures, strict=True):
            meter.add(figures, done.losses, passed.count)
        trainer.task.count(done.passes, done.taken)

    return step


def _peer_step(peer: peers.PeerStep, pixels: Tensor, device: torch.device) -> Work:
    return lambda: peer(from_pixels(pixels.to(device)))


def _facts(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Parameters, and multiply-adds per image in the forward pass's convolutions and products."""
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(each.numel() for each in model.parameters())
    training = model.training
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.eval()(images)
    model.train(training)
    return {"parameters": parameters, "multiply_adds": counted.get_total_flops() / 2 / len(images)}


def page(figures: dict[str, Any], folder: Path) -> str:
    rows = [
        [
            name,
            cell(each["milliseconds"]["bare"], 1),
            cell(each["milliseconds"]["ours"], 1),
            cell(each["added_milliseconds"], 2),
            f"{100 * (each['ratio']['median'] - 1):.1f} %",
            f"{100 * (each['ratio_of_sums'] - 1):.1f} %",
            f"{each['largest_difference']:.1g}",
        ]
        for name, each in figures["overhead"].items()
    ]
    head = ["", "bare, ms", "genkit, ms", "added, ms", "added", "with rows", "weights differ by"]
    speeds = [
        [
            name,
            f"{each['parameters'] / 1e6:.2f}",
            f"{each['multiply_adds'] / 1e6:.0f}",
            f"{each['bits_per_pixel']:.2f}",
            f"{1 / each['seconds']['median']:.2f}",
            cell(each["ratio"]),
        ]
        for name, each in figures["speed"].items()
    ]
    speed_head = [
        "",
        "parameters, M",
        "multiply-adds per image, M",
        "bits per pixel",
        "steps per second",
    ]
    parts = [
        "**Overhead of the training loop.** The loop of `genkit train` is compared with a "
        "hand-written loop with the same model, images, optimizer, clipping and weight average, in "
        "alternating steps. In addition genkit seeds by seed, step and process, keeps what it "
        "needs to undo a skipped step, checks loss and gradient for NaN and infinity, and records "
        "figures and codebook usage. `with rows` includes the row of metrics every 20 steps. Both "
        "end with the same weights.",
        table(head, rows),
        "**Compared with other libraries**, with batches of 16 images of 64 pixels, without "
        "reading them. genkit trains as `genkit train` does (Muon, weight average, figures). The "
        "others train as published, in float32 with Adam: VQ-VAE-2 with 128 channels, "
        "residual blocks of 32, and its one-hot quantizer; the same with "
        "the quantizer of vector-quantize-pytorch; "
        "diffusers' VQModel at the same size. Multiply-adds count a forward pass. The "
        f"last column is the time relative to {BASELINE}.",
        table([*speed_head, "time"], speeds),
    ]
    if figures["left_out"]:
        parts.append(f"Not installed, so not measured: {', '.join(figures['left_out'])}.")
    return "\n\n".join(parts)
