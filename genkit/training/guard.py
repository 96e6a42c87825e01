"""What keeps one bad step from spoiling a run: its effects are undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from genkit.distributed import all_min
from genkit.training.modules import buffers_of


class Snapshot:
    """What a forward pass changes, as it was before: buffers, and parameters of `sources`.

    Quantizers move their codes as they look at latents, and batch norms their statistics, before
    anybody knows whether the step can be taken.
    """

    def __init__(self, modules: Iterable[nn.Module], sources: Iterable[nn.Parameter]) -> None:
        self.modules = [each for module in modules for each in module.modules()]
        self.parameters = [each.data for each in sources]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Remember everything as it is."""
        current = self._tensors()
        if [each.shape for each in current] != [each.shape for each in self.kept]:
            self.kept = [each.clone() for each in current]
        else:
            _copy(self.kept, current)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in its place."""
        _copy(self._tensors(), self.kept)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters, *buffers_of(self.modules)]


def _copy(targets: list[Tensor], values: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, values)


def backward(scaler: GradScaler | None, loss: Tensor) -> None:
    """Add a loss's gradient, in fp16 scaled, to those of the parameters."""
    (scaler.scale(loss) if scaler else loss).backward()


@torch.no_grad()
def clip_and_step(
    scaler: GradScaler | None,
    optimizer: torch.optim.Optimizer,
    clip: float,
    losses: Iterable[Tensor],
) -> tuple[dict[str, Tensor], bool]:
    """Clip the gradient and take the optimizer's step, unless a loss or the gradient is not finite.

    Returns the gradient's norm before it was clipped and whether it was, and whether the step was
    taken, on which all processes agree. Without a step the gradient is dropped. A loss scale has
    then to be updated, once for all that it scaled.
    """
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
    if clip:
        clip_grads_with_norm_(parameters, clip, norm)
    finite = torch.stack([norm.float(), *(loss.float() for loss in losses)]).isfinite().all()
    # The one time that a step waits for its device: optimizers have to be told by the host to leave
    # weights, moments and counts as they are.
    taken = bool(all_min(finite.float()))
    if taken:
        optimizer.step()
    optimizer.zero_grad()
    figures = {"gradient_norm": norm}
    if clip:
        figures["clipped"] = (norm > clip).float()
    return figures, taken


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """The names of the values that hold an infinity or what is no number, in their order."""
    return [name for name, value in values.items() if not bool(value.isfinite().all())]
