"""What a run trains, and one step of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.evaluation.metrics import psnr
from genkit.images import from_uint8
from genkit.models import RGB
from genkit.run.options import TokenizerRun
from genkit.tokenizer import Tokenizer
from genkit.training.adversary import Adversary
from genkit.training.batchnorm import synchronise
from genkit.training.ema import EMA
from genkit.training.fit import check_fit
from genkit.training.guard import Snapshot, backward, clip_and_step, not_finite
from genkit.training.modules import load_module_state, load_optimizer_state, module_state
from genkit.training.optimizers import learning_rate, optimizer, set_learning_rate


@dataclass
class Step:
    """What came of a step: figures and indices of each forward pass, and which were not finite.

    `taken` is False where the tokenizer skipped it, `judged` where the discriminator did. A figure
    may be `broken` on another process alone.
    """

    lr: float
    passes: list[tuple[dict[str, Tensor], list[Tensor]]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    taken: bool = True
    judged: bool = True


class Trainer:
    """The tokenizer and all that trains it.

    `final` is the tokenizer that is validated and saved: the average of the weights if there is
    one.
    """

    def __init__(self, run: TokenizerRun, accelerator: Accelerator, channels: int = RGB) -> None:
        self.run, self.accelerator = run, accelerator
        device = accelerator.device
        seed(run.seed)
        self.tokenizer = Tokenizer(run, channels).to(memory_format=torch.channels_last)
        discriminator = run.discriminator.build(channels) if run.discriminator else None
        # It learns nothing, so that no process and no checkpoint has to know of it.
        self.perceptual = (
            run.perceptual.build(channels).eval().requires_grad_(False) if run.perceptual else None
        )
        check_fit(run, self.tokenizer, self.perceptual, discriminator)
        for module in (self.tokenizer, discriminator):
            if module:
                synchronise(module)
        self.average = EMA(self.tokenizer, run.ema, device) if run.ema else None
        self.model = accelerator.prepare(self.tokenizer)
        self.optimizer = optimizer(run, self.tokenizer, run.optimizer, run.lr)
        self.adversary = Adversary(run, accelerator, discriminator) if discriminator else None
        if self.perceptual:
            self.perceptual.to(device)
        self.final = cast("Tokenizer", self.average.module) if self.average else self.tokenizer

        self.modules: dict[str, nn.Module] = {"tokenizer": self.tokenizer}
        self.optimizers = {"tokenizer": self.optimizer}
        if self.average:
            self.modules["average"] = self.average
        if self.adversary:
            self.modules |= {
                "discriminator": self.adversary.plain,
                "verdicts": self.adversary.verdicts,
            }
            self.optimizers["discriminator"] = self.adversary.optimizer
        self.before = Snapshot([self.tokenizer], self.tokenizer.quantizers.parameters())

    def step(self, batches: Sequence[Tensor], step: int) -> Step:
        """Take a step on batches uint8 `[B, H, W, 3]`, a forward pass each.

        Every random draw follows from seed, step and process, so that a resumed run draws the same.
        """
        run, accelerator, adversary = self.run, self.accelerator, self.adversary
        scaler = accelerator.scaler
        seed((run.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index)
        done = Step(learning_rate(run, step, run.lr))
        set_learning_rate(self.optimizer, done.lr)
        judged = adversary if adversary and step >= run.discriminator_start else None
        self.before.take()
        if judged:
            judged.before.take()

        verdict: dict[str, Tensor] = {}
        for number, pixels in enumerate(batches, 1):
            last = number == len(batches)
            images = from_uint8(pixels.to(accelerator.device, non_blocking=True)).to(
                memory_format=torch.channels_last
            )
            with ExitStack() as stack:
                if not last:  # Processes exchange their gradients after the last alone.
                    stack.enter_context(accelerator.no_sync(self.model))
                    if judged:
                        stack.enter_context(accelerator.no_sync(judged.model))
                with accelerator.autocast():
                    reconstructions, indices, quantization = self.model(images)
                made = reconstructions.float()
                losses, figures = self._losses(images, made, quantization, judged, step)
                loss = torch.stack(list(losses.values())).sum()
                backward(scaler, loss / run.accumulate)
                figures |= {"loss": loss.detach(), **losses, "psnr": psnr(images, made).mean()}
                done.passes.append((figures, indices))
                if last:
                    totals = [values["loss"] for values, _ in done.passes]
                    norm, done.taken = clip_and_step(scaler, self.optimizer, run.clip, totals)
                    figures |= norm
                if judged and done.taken:
                    verdict, done.judged = judged.step(images, made, step, last)
                    figures |= verdict
        if scaler:
            scaler.update()
        if not (done.taken and done.judged):
            for figures, _ in done.passes:
                done.broken += not_finite(figures)
                # On all processes alike, for means are taken over all of them.
                for name in verdict:
                    figures.pop(name, None)
        if not done.taken:
            self.before.restore()
            if judged:
                judged.drop()
        elif self.average:
            self.average.update()
        return done

    def _losses(
        self,
        images: Tensor,
        made: Tensor,
        quantization: Tensor,
        judged: Adversary | None,
        step: int,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted losses whose sum is minimised, and figures to log beside them."""
        run, figures = self.run, {}
        kind = F.l1_loss if run.reconstruction == "l1" else F.mse_loss
        losses = {
            "reconstruction": run.reconstruction_weight * kind(made, images),
            "quantization": quantization,
        }
        if self.perceptual:
            with self.accelerator.autocast():
                seen = self.perceptual(made, images)
            losses["perceptual"] = run.perceptual_weight * seen.float()
        if judged:
            likeness = losses["reconstruction"] + losses.get("perceptual", 0)
            losses["adversarial"], weight = judged.verdict(made, likeness, step)
            figures["adversarial_weight"] = weight
        return losses, figures

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of this."""
        scaler = self.accelerator.scaler
        return {
            "modules": {name: module_state(module) for name, module in self.modules.items()},
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; `TrainingError` if it is another model's."""
        for name, module in self.modules.items():
            load_module_state(module, state["modules"].get(name, {}))
        for name, each in self.optimizers.items():
            load_optimizer_state(each, state["optimizers"][name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def seed(number: int) -> None:
    """Seed every generator that a component may draw from."""
    random.seed(number)
    np.random.seed(number % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # Looking for accelerators takes a tenth of a millisecond.
        torch.default_generator.manual_seed(number)
