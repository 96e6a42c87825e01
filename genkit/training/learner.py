"""One module in training: its optimizer, learning rate, averaged weights, and undoing a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from genkit.distributed import all_min
from genkit.training.batchnorm import synchronise
from genkit.training.ema import EMA
from genkit.training.modules import buffers_of, copy_all


class Doubted(Exception):
    """A search of the forward pass may have been wrong: the step must be undone and repeated."""


class Learner:
    """A module, its optimizer and all that a step of training changes.

    `module` is the plain module. A forward pass of training calls `model`, which exchanges
    gradients between processes. `final` is the module to validate and save: the average of the
    weights if there is one. `modules` names all modules whose state a checkpoint holds.

    A step is `begin`, then for each of its batches `backward`, then `finish`. `undo` puts back
    everything that the step has changed.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        accelerator: Accelerator,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        learning_rate: Callable[[int], float],
        *,
        clip: float = 0.0,
        accumulate: int = 1,
        ema: float = 0.0,
        moved: Iterable[nn.Parameter] = (),
        beside: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """`moved` are parameters that the forward pass itself moves, such as codes.

        `beside` are modules, by name, that belong to the learner and have no optimizer.
        """
        synchronise(module)
        self.name, self.module, self.accelerator = name, module, accelerator
        self.learning_rate, self.clip, self.accumulate = learning_rate, clip, accumulate
        beside = {key: each.to(accelerator.device) for key, each in (beside or {}).items()}
        # Before `prepare`, which may replace the module's forward by a wrapper.
        self.average = EMA(module, ema, accelerator.device) if ema else None
        self.model = accelerator.prepare(module)
        # Accelerate puts the run's precision into the module, whose validation would then differ
        # from that of an average. Tasks use `autocast` where they train.
        if (forward := vars(module).pop("_original_forward", None)) is not None:
            module.forward = forward
        self.optimizer = optimizer(module)
        averaged = {"average": self.average} if self.average else {}
        self.modules: dict[str, nn.Module] = {name: module, **averaged, **beside}
        self.final = self.average.module if self.average else module
        self._before = Snapshot([module, *beside.values()], moved)
        self.lr = 0.0

    def begin(self, step: int) -> None:
        """Set the learning rate of a step and remember what its forward passes may change."""
        self.lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self._before.take()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one batch's loss, scaled in fp16, to the step's gradient."""
        scaler, loss = self.accelerator.scaler, loss / self.accumulate
        (scaler.scale(loss) if scaler else loss).backward()

    @torch.no_grad()
    def finish(
        self, losses: Iterable[Tensor], doubts: Sequence[Tensor] = ()
    ) -> tuple[dict[str, Tensor], bool]:
        """Clip the gradient and move the weights, unless a loss or the gradient is not finite.

        Returns the gradient's norm before clipping, whether it was clipped, and whether the step
        was taken, on which all processes agree. The gradient is dropped either way. In fp16 the
        trainer updates the loss scale afterwards, once for all learners. `Doubted` if one of the
        `doubts` of the forward passes is raised in a process.
        """
        if self.accelerator.scaler:
            self.accelerator.scaler.unscale_(self.optimizer)
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
        if self.clip:
            clip_grads_with_norm_(parameters, self.clip, norm)
        finite = torch.stack([norm.float(), *(loss.float() for loss in losses)]).isfinite().all()
        # The one time that a step waits for its device: the host must decide whether the optimizer
        # may touch weights, moments and counts.
        sure = torch.stack([*doubts]).any().logical_not() if doubts else torch.ones_like(finite)
        taken, settled = all_min(torch.stack([finite, sure]).float()).tolist()
        if not settled:
            raise Doubted
        if taken:
            self.optimizer.step()
            if self.average:
                self.average.update()
        self.optimizer.zero_grad()
        figures = {"gradient_norm": norm}
        if self.clip:
            figures["clipped"] = (norm > self.clip).float()
        return figures, bool(taken)

    def undo(self) -> None:
        """Put back what the step has changed, and drop its gradient."""
        self.optimizer.zero_grad()
        self._before.restore()


class Snapshot:
    """A copy of everything that a forward pass changes: buffers, and the parameters `moved`.

    Quantizers move codes, and batch norms their statistics, in the forward pass: before anyone
    knows whether the step can be taken.
    """

    def __init__(self, modules: Iterable[nn.Module], moved: Iterable[nn.Parameter]) -> None:
        self.modules = [each for module in modules for each in module.modules()]
        self.parameters = [each.data for each in moved]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Remember everything as it is."""
        current = self._tensors()
        if [each.shape for each in current] != [each.shape for each in self.kept]:
            self.kept = [each.clone() for each in current]
        else:
            copy_all(self.kept, current)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in its place."""
        copy_all(self._tensors(), self.kept)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters, *buffers_of(self.modules)]
