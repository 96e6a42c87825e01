"""What keeps one bad step from spoiling a run: its effects are undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from genkit.distributed import all_min


class Snapshot:
    """What a forward pass changes, as it was before: buffers, and parameters of `sources`.

    Quantizers move their codes as they look at latents, and batch norms their statistics, before
    anybody knows whether the step can be taken.
    """

    def __init__(self, modules: Iterable[nn.Module], sources: Iterable[nn.Parameter]) -> None:
        self.modules, self.parameters = list(modules), [each.data for each in sources]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Remember everything as it is."""
        current = list(self._tensors())
        if [each.shape for each in current] != [each.shape for each in self.kept]:
            self.kept = [each.clone() for each in current]
        else:
            _copy(self.kept, current)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in its place."""
        _copy(list(self._tensors()), self.kept)

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters
        for module in self.modules:
            yield from module.buffers()


def _copy(targets: list[Tensor], values: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, values)


@torch.no_grad()
def clip_and_step(
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    parameters: Iterable[nn.Parameter],
    clip: float,
    losses: Iterable[Tensor],
) -> tuple[dict[str, Tensor], bool]:
    """Clip the gradient and take the optimizer's step, unless a loss or the gradient is not finite.

    Returns the gradient's norm before it was clipped and whether it was, and whether the step was
    taken, on which all processes agree. Without a step the gradient is dropped, and a loss scale is
    lowered.
    """
    norm: Tensor = accelerator.clip_grad_norm_(list(parameters), clip or torch.inf)
    finite = torch.stack([norm.float(), *(loss.float() for loss in losses)]).isfinite().all()
    taken = bool(all_min(finite.float()))
    if taken:
        optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()
    optimizer.zero_grad()
    figures = {"gradient_norm": norm}
    if clip:
        figures["clipped"] = (norm > clip).float()
    return figures, taken


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """The names of the values that hold an infinity or what is no number, in their order."""
    return [name for name, value in values.items() if not bool(value.isfinite().all())]
