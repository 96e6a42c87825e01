"""State of modules and optimizers, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genkit.distributed import is_split, own_part, split_like
from genkit.errors import TrainingError


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, also the buffers that the model file leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own buffers, each once.

    For a list of modules made beforehand, this takes a tenth of the time of `Module.buffers`, which
    first walks the tree of modules.
    """
    found = {id(each): each for module in modules for each in module._buffers.values()}
    return [each for each in found.values() if each is not None]


def copy_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its target.

    One call for each dtype, since a GPU copies lists of several dtypes one tensor at a time.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, value in zip(targets, values, strict=True):
        into, of = groups.setdefault((target.dtype, target.device), ([], []))
        into.append(target)
        of.append(value)
    for into, of in groups.values():
        torch._foreach_copy_(into, of)


def load_module_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `module_state` gave; `TrainingError` if the module has changed since."""
    tensors = module_state(module)
    shapes, saved = ({name: x.shape for name, x in each.items()} for each in (tensors, state))
    if shapes != saved:
        changed = sorted(name for name in {*shapes, *saved} if shapes.get(name) != saved.get(name))
        raise TrainingError(
            f"the checkpoint to resume from does not fit the model: {len(changed)} tensors differ, "
            f"first '{changed[0]}'; was it written by another version of a component?"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            own_part(value).copy_(own_part(split_like(state[name], value)))


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back an optimizer's state, its moments in the memory layout of their parameters.

    Fused optimizers walk through both in memory order, and a file keeps the plain layout alone.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                if is_split(parameter):
                    moments[name] = split_like(value, parameter)
                else:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
