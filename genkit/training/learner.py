"""One module in training: its optimizer, learning rate, averaged weights, and undoing a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from genkit.distributed import all_min, processes, whole
from genkit.training.batchnorm import synchronise
from genkit.training.ema import EMA
from genkit.training.modules import buffers_of, copy_all
from genkit.training.sharding import Whole, check_moments, gathered, shard


class Doubted(Exception):
    """A search of the forward pass may have been wrong: the step must be undone and repeated."""


class Learner:
    """A module, its optimizer and all that a step of training changes.

    `module` is the plain module. A forward pass of training calls `model`, which exchanges
    gradients between processes. `final` is the module to validate and save: the average of the
    weights if there is one. Of a `sharded` learner, it has weights only inside `whole`. `modules`
    names all modules whose state a checkpoint holds.

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
        device, self.sharded = accelerator.device, accelerator.is_fsdp2
        self.name, self.module, self.accelerator = name, module, accelerator
        self.learning_rate, self.clip, self.accumulate = learning_rate, clip, accumulate
        beside = {key: each.to(accelerator.device) for key, each in (beside or {}).items()}
        # Sharding moves weights to the device itself, part by part.
        self.average = EMA(module, ema, "cpu" if self.sharded else device) if ema else None
        self._whole = Whole(module, device) if self.sharded else None
        for each in (module, *([self.average.module] if self.average else [])):
            if self.sharded:
                shard(each, accelerator)
        self.model = module if self.sharded else exchanging(module.to(device))
        self.optimizer = optimizer(module)
        averaged = {"average": self.average} if self.average else {}
        self.modules: dict[str, nn.Module] = {name: module, **averaged, **beside}
        self._averaged = self.average.module if self.average else module
        self.final = self._whole.module if self._whole else self._averaged
        self._before = Snapshot([module, *beside.values()], moved)
        self.lr = 0.0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside it, `final` can be used; all processes enter it together."""
        with self._whole.filled(self._averaged) if self._whole else nullcontext():
            yield

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
        norm = whole(norm)
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

    def state(self) -> dict[str, Any]:
        """The optimizer's state, as `load` takes it; all processes call this together."""
        if not self.sharded:
            return self.optimizer.state_dict()
        check_moments(self.optimizer)
        state: dict[str, Any] = gathered(self.optimizer.state_dict())
        return state

    def undo(self) -> None:
        """Put back what the step has changed, and drop its gradient."""
        self.optimizer.zero_grad()
        self._before.restore()


def exchanging(module: nn.Module) -> nn.Module:
    """A module, on its device, that exchanges its gradients between processes.

    `Accelerator.prepare` would also put the module's own forward pass under autocast, where
    validation has no use for it, and spend seconds on imports that one process does not need.
    """
    if processes() == 1 or not any(each.requires_grad for each in module.parameters()):
        return module
    # Codebooks and batch norms keep themselves identical. A broadcast at every forward pass would
    # also write to buffers that an earlier pass still needs for its gradient.
    with warnings.catch_warnings():
        # Newer versions of PyTorch give the argument another name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Without `device_ids`, which are wrong where a launcher shows each process its own GPU.
        return DistributedDataParallel(module, broadcast_buffers=False)


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
