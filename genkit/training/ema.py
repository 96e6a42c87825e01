"""A running average of the weights, which is validated and saved in their place."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from genkit.distributed import own_part
from genkit.training.modules import buffers_of, copy_all


class EMA(nn.Module):
    """A running average of a module's weights and buffers, which `update` moves towards them.

    The decay rises as (1 + n) / (10 + n) over the first n updates, so that the average soon forgets
    where it came from. Whole numbers are copied.
    """

    n_averaged: Tensor

    def __init__(self, module: nn.Module, decay: float, device: torch.device | str) -> None:
        super().__init__()
        self.decay = decay
        self.module = deepcopy(module).to(device)
        # On the CPU: the host reads it at every step.
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64))
        self._pairs = [list(each.modules()) for each in (self.module, module)]

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights and buffers into the average."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        averaged, current = (_tensors(modules) for modules in self._pairs)
        pairs = list(zip(averaged, current, strict=True))
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        if moved:
            torch._foreach_lerp_([a for a, _ in moved], [b for _, b in moved], weight)
        copy_all([a for a, _ in copied], [b for _, b in copied])
        self.n_averaged += 1


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    found = {id(each): each for module in modules for each in module._parameters.values()}
    return [
        *(own_part(each) for each in found.values() if each is not None),
        *buffers_of(modules),
    ]
