"""One step of training any task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genkit.distributed import all_min, is_split, own_part
from genkit.ops.later import doubted
from genkit.run.options import TrainingOptions
from genkit.training.learner import Doubted
from genkit.training.modules import load_module_state, load_optimizer_state, module_state
from genkit.training.seeds import same_draws, seed
from genkit.training.sharding import gathered
from genkit.training.task import Pass, Task

# After a doubted step each search asks for itself, for this many steps.
_CAREFUL = 50


@dataclass
class Step:
    """The outcome of a step: its forward passes with their figures, and which were not finite.

    `taken` is False if the first learner skipped the step, `others_taken` if another one did. A
    figure may be `broken` on another process alone.
    """

    lr: float
    passes: list[Pass] = field(default_factory=list)
    figures: list[dict[str, Tensor]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    taken: bool = True
    others_taken: bool = True

    @property
    def losses(self) -> list[str]:
        """The names of the figures that are losses, their sum first."""
        return ["loss", *dict.fromkeys(name for each in self.passes for name in each.losses)]


class Trainer:
    """A task's learners, and the steps that move them."""

    def __init__(self, run: TrainingOptions, accelerator: Accelerator, task: Task) -> None:
        self.run, self.accelerator, self.task = run, accelerator, task
        self.learner, *self.others = task.learners
        # The first step whose searches are asked about together.
        self.trusted_from = 0

    def step(self, batches: Sequence[Any], step: int) -> Step:
        """Take a step on batches, a forward pass each.

        Every random draw follows from seed, step and process, so that a resumed run draws the same.
        """
        if step < self.trusted_from:
            return self._take(batches, step)
        try:
            with doubted() as doubts:
                return self._take(batches, step, doubts)
        except Doubted:
            for each in self.task.learners:
                each.undo()
            if scaler := self.accelerator.scaler:
                # An update alone lets it unscale the same step's gradients again.
                scale = scaler.state_dict()
                scaler.update()
                scaler.load_state_dict(scale)
            # The next steps will hardly be better.
            self.trusted_from = step + _CAREFUL
            return self._take(batches, step)

    def _take(self, batches: Sequence[Any], step: int, doubts: Sequence[Tensor] = ()) -> Step:
        accelerator, learner = self.accelerator, self.learner
        number = self.run.seed * 1_000_003 + step
        seed(number * accelerator.num_processes + accelerator.process_index)
        for each in self.task.learners:
            each.begin(step)
        done = Step(learner.lr)
        others: dict[str, Tensor] = {}
        for position, batch in enumerate(batches, 1):
            last = position == len(batches)
            with self._exchange(last):
                passed = self.task.losses(batch, step)
                loss = torch.stack(list(passed.losses.values())).sum()
                learner.backward(loss)
                figures = {"loss": loss, **passed.losses, **passed.figures}
                figures = {name: each.detach() for name, each in figures.items()}
                done.passes.append(passed)
                done.figures.append(figures)
                if last:
                    losses = [each["loss"] for each in done.figures]
                    norm, done.taken = learner.finish(losses, doubts)
                    figures |= norm
                if self.others and done.taken:
                    others, done.others_taken = self.task.after(passed, step, last)
                    figures |= others
        if accelerator.scaler:
            accelerator.scaler.update()
        if not (done.taken and done.others_taken):
            for figures in done.figures:
                done.broken += not_finite(figures)
                # On all processes alike, since means are taken over all of them.
                for name in others:
                    figures.pop(name, None)
        if not done.taken:
            for each in self.task.learners:
                each.undo()
        return done

    def rehearse(self, batch: Any, step: int) -> None:
        """Run one pass of a later step that needs more memory, if the task knows one, and undo it.

        Memory that is missing is thus missed at once, not after hours. It exchanges no gradients.
        """
        later = self.task.fullest(step)
        if later is None:
            return
        with same_draws(self.accelerator.device):
            for each in self.task.learners:
                each.begin(later)
            with self._exchange(last=False):
                passed = self.task.losses(batch, later)
                self.learner.backward(torch.stack(list(passed.losses.values())).sum())
                self.task.after(passed, later, last=False)
            for each in self.task.learners:
                each.undo()

    @contextmanager
    def _exchange(self, last: bool) -> Iterator[None]:
        """Processes exchange their gradients after the last batch of a step alone.

        Sharded ones do after each: a process has no memory for the gradients of all weights.
        """
        with ExitStack() as stack:
            for learner in self.task.learners:
                if not (last or learner.sharded):
                    stack.enter_context(self.accelerator.no_sync(learner.model))
            yield

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of all learners by name."""
        return {
            name: each for learner in self.task.learners for name, each in learner.modules.items()
        }

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs of the learners and the task."""
        scaler = self.accelerator.scaler
        return {
            "modules": {
                name: gathered(module_state(module)) for name, module in self.modules.items()
            },
            "optimizers": {each.name: each.state() for each in self.task.learners},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "task": self.task.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; `TrainingError` if it is another model's."""
        for name, module in self.modules.items():
            load_module_state(module, state["modules"].get(name, {}))
        for each in self.task.learners:
            load_optimizer_state(each.optimizer, state["optimizers"][each.name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.task.load(state["task"])


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """The names of the values that contain NaN or infinity, in their order."""
    # Ask each device once.
    asked: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in values.items():
        asked.setdefault(value.device, {})[name] = _finite(value)
    fine: dict[str, bool] = {}
    for flags in asked.values():
        fine |= zip(flags, torch.stack([*flags.values()]).tolist(), strict=True)
    return [name for name in values if not fine[name]]


def _finite(value: Tensor) -> Tensor:
    finite = own_part(value).isfinite().all()
    return all_min(finite.float()) > 0 if is_split(value) else finite
