"""Training a tokenizer, alone or against a discriminator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from genkit.captions import captioned, sample_grid
from genkit.checkpoint.model import load, save
from genkit.data.loader import loader
from genkit.data.reading import batches, none_readable, read
from genkit.distributed import all_sum, processes
from genkit.evaluation.images import data_text
from genkit.evaluation.metrics import evaluate, psnr
from genkit.evaluation.plot import code_histogram
from genkit.evaluation.usage import CodeCounts
from genkit.images import Pixels, from_pixels, values_fact
from genkit.interfaces import Dataset, Split
from genkit.plugin.options import Part
from genkit.run.options import TokenizerRun
from genkit.settings import settings_of, specs
from genkit.tokenizer import Tokenizer
from genkit.training.adversary import Adversary
from genkit.training.call import called
from genkit.training.compiling import eager
from genkit.training.fit import check_fit
from genkit.training.health import CodeHealth
from genkit.training.learner import Learner
from genkit.training.modules import module_state
from genkit.training.nets import prepare_nets
from genkit.training.optimizers import learning_rate, optimizer
from genkit.training.start import frozen_parts, start_from
from genkit.training.task import Pass, Progress, Summary, Validation

# Held-out images in the grid of samples.
_SHOWN = 16


class _Images(NamedTuple):
    images: Tensor
    reconstructions: Tensor
    indices: list[Tensor]


class TokenizerTask:
    """Fits a tokenizer to images. A discriminator, if there is one, is a second learner."""

    def __init__(self, run: TokenizerRun, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        device = accelerator.device
        data: Dataset = run.data.build(run.size, run.seed)
        self.training, self.heldout = data.split("train"), data.split("heldout")
        self.fingerprint, channels = data.fingerprint, data.channels
        if not getattr(data, "generated", False):
            check_heldout(run, self.heldout, accelerator.process_index, device)
        step = -(-len(self.heldout) // _SHOWN)
        _, shown = read(self.heldout, range(0, len(self.heldout), step))
        self.shown = from_pixels(torch.from_numpy(shown)).to(device)

        tokenizer = Tokenizer(run.tokenizer, channels).to(memory_format=torch.channels_last)
        discriminator = run.discriminator.build(channels) if run.discriminator else None
        self.perceptual = (
            run.perceptual.build(channels).eval().requires_grad_(False) if run.perceptual else None
        )
        for net in (discriminator, self.perceptual):
            # Their images are in this layout: weights would be turned round in every step.
            if net is not None:
                net.to(memory_format=torch.channels_last)
        self.reconstruction = run.reconstruction.build(channels)
        check_fit(run, tokenizer, self.perceptual, discriminator)
        started, self.origin = start_from(run.from_, tokenizer) if run.from_ else ([], {})
        self.frozen = frozen_parts(tokenizer, run.trainable)
        self.tokenizer = tokenizer
        nets = [tokenizer.encoder, tokenizer.decoder, *tokenizer.fusions]
        prepare_nets(run, [*nets, *([discriminator] if discriminator else [])], device)
        self.learner = Learner(
            "tokenizer",
            tokenizer,
            accelerator,
            optimizer(run, run.optimizer, run.lr),
            learning_rate(run, run.lr),
            clip=run.clip,
            accumulate=run.accumulate,
            ema=run.ema,
            moved=tokenizer.quantizers.parameters(),
        )
        self.adversary = Adversary(run, accelerator, discriminator) if discriminator else None
        self.learners = [self.learner, *([self.adversary.learner] if self.adversary else [])]
        if self.perceptual:
            self.perceptual.to(device)
        self.final = cast("Tokenizer", self.learner.final)
        images = run.batch_size * processes()
        self.health = CodeHealth(tokenizer.codebooks, images, len(self.training)).to(device)
        self.summary = Summary(
            f"{run.encoder.name} + {run.quantizer.name} + {run.decoder.name}",
            f"{data_text(run.data)} at {run.resolution} px",
            "images",
            len(self.training),
            len(self.heldout),
            [*getattr(data, "notes", []), *_notes(self.perceptual, discriminator), *started],
            _warnings(run),
        )

    def prepare(self, directory: Path, progress: Progress) -> None:
        """Nothing: images are read as they are needed."""

    def batches(self, first: int) -> Iterator[tuple[Tensor, Mapping[str, str]]]:
        """Batches `[B, H, W, C]` of this process from step `first` on."""
        accelerator = self.accelerator
        return loader(
            self.run, self.training, accelerator.process_index, accelerator.num_processes, first
        )

    def losses(self, batch: Tensor, step: int) -> Pass:
        """Reconstruct a batch `[B, H, W, C]`."""
        run, figures = self.run, dict[str, Tensor]()
        for part in self.frozen:  # Putting the whole into training mode includes them.
            part.eval()
        images = from_pixels(batch.to(self.accelerator.device, non_blocking=True))
        images = images.to(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            reconstructions, indices, quantization = self.learner.model(images)
        made = reconstructions.float()
        losses = {
            "reconstruction": run.reconstruction_weight * self.reconstruction(made, images),
            "quantization": quantization,
        }
        if self.perceptual:
            with self.accelerator.autocast():
                distance = self.perceptual(made, images)
            losses["perceptual"] = run.perceptual_weight * distance.float()
        if self.adversary and self.adversary.weight(step):
            likeness = losses["reconstruction"] + losses.get("perceptual", 0)
            losses["adversarial"], weight = self.adversary.loss(made, likeness, step)
            figures["adversarial_weight"] = weight
        figures["psnr"] = psnr(images, made).mean()
        return Pass(losses, figures, len(images), _Images(images, made, indices))

    def after(self, passed: Pass, step: int, last: bool) -> tuple[dict[str, Tensor], bool]:
        """Train the discriminator on a batch and its reconstructions."""
        if not self.adversary or step < self.run.discriminator_start:
            return {}, True
        return self.adversary.step(passed.data.images, passed.data.reconstructions, step, last)

    def fullest(self, step: int) -> int | None:
        """A later step that needs more memory: one where the discriminator's verdict counts."""
        run = self.run
        if not self.adversary:
            return None
        head_start = run.discriminator_head_start if run.adversarial_weight else 0
        later = run.discriminator_start + head_start
        later += -later % run.r1_every if run.r1_weight else 0
        later = min(later, run.steps - 1)
        return later if later > step and later >= run.discriminator_start else None

    def count(self, passes: Sequence[Pass], taken: bool) -> None:
        """Count the codes of a step."""
        for each in passes:
            if taken:
                self.health.add(each.data.indices)
            else:
                self.health.skip()

    def row(self, step: int) -> dict[str, Any]:
        """The use of codes per level since the last row, and alarms with advice."""
        levels = self.health.row()
        alarms = (
            self.health.collapsed(_advice(self.run.quantizer)) if step > self.run.warmup else []
        )
        if self.adversary:
            alarms += self.adversary.verdicts.alarms()
        return {"levels": levels, **({"alarms": alarms} if alarms else {})}

    def validate(self, step: int) -> Validation:
        """Figures of held-out images and the last epoch's use of codes, with pictures of both."""
        run, accelerator = self.run, self.accelerator
        codes = CodeCounts(self.tokenizer.codebooks, accelerator.device)
        with eager(run.compile):
            figures = evaluate(
                self.final,
                self.heldout,
                run.validation_images,
                run.batch_size,
                accelerator.process_index,
                codes,
            )
        images, trained = self.health.last_epoch()
        held = codes.totals()

        def draw() -> dict[str, Pixels]:
            shares = [
                (f"{images} training images", trained),
                (f"{figures['images']} held-out images", held),
            ]
            pictures = {"codes": captioned(code_histogram(shares), f"step {step}: use of codes")}
            if len(self.shown):
                with torch.no_grad(), eager(run.compile):
                    made = [self.final(part).images for part in self.shown.split(run.batch_size)]
                words = (
                    f"step {step}: {len(self.shown)} of {figures['images']} held-out images; "
                    f"mean PSNR of all: {figures['psnr']:.2f} dB"
                )
                pictures["samples"] = sample_grid(self.shown, torch.cat(made), words)
            return pictures

        counts = {
            f"{name}/levels/{level}/counts": each
            for name, levels in (("epoch", trained), ("validation", held))
            for level, each in enumerate(levels)
        }
        return Validation({"validation": figures, "epoch": self.health.summary()}, draw, counts)

    def problems(self) -> dict[str, str]:
        """The images that could not be read so far in this process, each with the reason."""
        return {**self.training.problems, **self.heldout.problems}

    def save(self, path: Path, step: int) -> None:
        """Write the tokenizer alone."""
        run = self.run
        self.final.facts = {
            "step": step,
            "resolution": run.resolution.plain,
            "seed": run.seed,
            "fingerprint": self.fingerprint,
            "data": settings_of(run, local=False)["data"],
            **values_fact(self.training),
            **({"from": self.origin} if self.origin else {}),
        }
        if self.adversary:
            floats = [
                x for x in module_state(self.adversary.plain).values() if x.is_floating_point()
            ]
            self.final.facts["discriminator"] = sum(each.numel() for each in floats)
        save(self.final, path)

    def state(self) -> dict[str, Any]:
        """The counts of codes, and what the run started from."""
        return {"health": self.health.state(), "origin": self.origin}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.health.load(state["health"])
        self.origin = state.get("origin", {})


def train(
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    data: Any = None,
    presets: str | None = None,
    on_row: Callable[[Mapping[str, Any]], object] | None = None,
    resume: bool = False,
) -> Tokenizer:
    """Train a tokenizer as `genkit train` does, and return it.

    `settings` have the keys of a config file: `{"encoder": "aren", "steps": 500, "lr": 1e-3}`; a
    part with options of its own is `{"encoder": {"name": "aren", "levels": 3}}`. `data` is a data
    set's name, a location, settings with a name, an object with the methods of
    `genkit.interfaces.Dataset`, or a torch `Dataset` of images. The run directory is `out`, or one
    below `runs/`. `on_row` is called with every row of metrics. With `resume`, the run in `out`
    continues, with its own settings below the given ones.

    `KeyboardInterrupt` after Ctrl-C, once everything is saved; `GenkitError` if the settings or the
    data are wrong.
    """
    directory = called(
        TokenizerTask,
        TokenizerRun,
        settings,
        presets=presets,
        out=out,
        data=data,
        on_row=on_row,
        resume=resume,
    )
    return load(directory)


def check_heldout(run: TokenizerRun, heldout: Split, process: int, device: torch.device) -> None:
    """Read the images of a validation; `DataError` if none of them can be read.

    Otherwise a run would fail at its first validation.
    """
    read_ones = batches(
        heldout, run.validation_images, run.batch_size, torch.device("cpu"), process
    )
    count = sum(len(kept) for kept, _ in read_ones)
    if not all_sum(torch.tensor(float(count), device=device)):
        raise none_readable(heldout.problems, "held-out images")


def _notes(*nets: Any) -> list[str]:
    """Sentences of components on how they see the images."""
    return [note for net in nets if (note := getattr(net, "note", ""))]


def _advice(quantizer: Part) -> str:
    """Advice against a collapsed codebook: the quantizer's own cures that are off."""
    general = "a lower --lr, a longer --warmup, or fewer codes"
    if quantizer.component is None:
        return f"Try {general}."
    own = specs(quantizer.component.config, settings_of(quantizer.options), ("quantizer",))
    cures = [spec.cure for spec in own if spec.cure]
    return f"Try {', '.join(cures)}; or {general}." if cures else f"Try {general}."


def _warnings(run: TokenizerRun) -> list[str]:
    start, counts = run.discriminator_start, run.discriminator_start + run.discriminator_head_start
    if not run.discriminator or not run.steps:
        return []
    if run.steps <= start:
        return [
            f"the discriminator starts at step {start}, which this run does not reach: give a "
            "lower --discriminator-start"
        ]
    if run.adversarial_weight and run.steps <= counts:
        other = " or --discriminator-start" if start else ""
        return [
            f"the discriminator's verdict counts from step {counts} on, which this run does not "
            f"reach: give a lower --discriminator-head-start{other}"
        ]
    return []
