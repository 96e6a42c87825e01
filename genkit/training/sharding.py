"""Modules whose weights are split among processes by FSDP2, as Accelerate is configured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genkit.distributed import is_split, process, whole
from genkit.errors import TrainingError
from genkit.training.modules import module_state


def shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Split the weights of a module among all processes, in place.

    The elements of each `nn.ModuleList`, such as a transformer's layers, are gathered one at a time
    if Accelerate's policy is TRANSFORMER_BASED_WRAP.
    """
    from accelerate.utils import fsdp2_prepare_model

    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    names = {type(layer).__name__ for each in lists for layer in each}
    cast("Any", module)._no_split_modules = sorted(names)
    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        # Otherwise the loss would be rounded to the precision of the weights.
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, output_dtype=torch.float32
        )
    # Every process has drawn the same weights already. Accelerate would send the first process's,
    # and take buffers for parameters.
    plugin.cpu_ram_efficient_loading = False
    fsdp2_prepare_model(accelerator, module)


class Whole:
    """A whole copy of a sharded module, whose weights take memory only while it is `filled`."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Copies the module before it is sharded."""
        self.module = deepcopy(module).to(device)
        self._sizes = {
            name: each.untyped_storage().nbytes() for name, each in self._parameters().items()
        }
        self._resize(empty=True)

    @contextmanager
    def filled(self, source: nn.Module) -> Iterator[None]:
        """Inside it, the copy has the weights of the sharded `source`; all processes call this."""
        self._resize(empty=False)
        try:
            own = module_state(self.module)
            with torch.no_grad():
                for name, value in module_state(source).items():
                    own[name].copy_(whole(value))
            yield
        finally:
            self._resize(empty=True)

    def _resize(self, empty: bool) -> None:
        for name, each in self._parameters().items():
            each.untyped_storage().resize_(0 if empty else self._sizes[name])

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters())


def gathered(state: Any) -> Any:
    """A state with whole tensors in place of split ones; on process 0 alone, empty on the others.

    All processes call this, since they send their parts.
    """
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    if not is_split(state):
        return state
    full = whole(state)
    return full.cpu() if process() == 0 else full.new_empty(0)


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """`TrainingError` if a sharded run could not be resumed with its optimizer's state."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if is_split(value) and value.shape != parameter.shape:
                raise TrainingError(
                    f"the optimizer keeps '{name}' in another shape than its weights, which a "
                    "sharded run cannot save: choose --optimizer adamw"
                )
