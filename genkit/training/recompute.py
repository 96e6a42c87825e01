"""Activation checkpointing: blocks of a net compute their forward pass again for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def recompute(net: nn.Module) -> None:
    """Make every block of a net keep only its inputs until its gradient is taken.

    The backward pass then computes the block again. Gradients stay the same, and so do names in the
    state. Nothing happens where no gradients are recorded.
    """
    for block in blocks(net) or [net]:
        # Set on the instance, so that the module keeps its class and its place in the net.
        vars(block)["forward"] = partial(_recomputed, block, block.forward)


def blocks(net: nn.Module) -> list[nn.Module]:
    """The parts of a net that are recomputed one by one; the whole net if it has no blocks.

    A block is a module with modules of its own in a Sequential or a list. The other parts of a net
    with blocks are recomputed too, each as a whole.
    """
    if not (_has_blocks(net) or isinstance(net, nn.ModuleList | nn.ModuleDict)):
        return [net]
    found = (each for child in net.children() if _is_composite(child) for each in blocks(child))
    return list(dict.fromkeys(found))


def _has_blocks(net: nn.Module) -> bool:
    return any(
        _is_composite(item) and not isinstance(item, _LISTS)
        for each in net.modules()
        if isinstance(each, _LISTS)
        for item in each.children()
    )


def _is_composite(module: nn.Module) -> bool:
    # A batch norm may have an activation inside. It is no block: several processes replace its
    # forward pass, which must be the same when it is computed again.
    return any(True for _ in module.children()) and not isinstance(module, _BatchNorm)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        # The compiler recomputes inside its own graph, which changes buffers once.
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    now = _AsNow(block)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), now), **kwargs
    )


class _AsNow:
    """A context that gives a block the buffers and the frozen parameters of now.

    The second forward pass thus starts as the first one did, and its changes, such as to running
    statistics, are dropped. Parameters that are frozen for one forward pass need it too: the second
    pass must save the same tensors.
    """

    def __init__(self, block: nn.Module) -> None:
        self.buffers = [
            (module, name, buffer.clone())
            for module in block.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.parameters = [(each, each.requires_grad) for each in block.parameters()]
        self.later: list[Tensor | None] = []
        self.changed: list[nn.Parameter] = []

    def __enter__(self) -> None:
        # By exchange, because autograd may still need the later values.
        self.later = [module._buffers[name] for module, name, _ in self.buffers]
        for module, name, buffer in self.buffers:
            module._buffers[name] = buffer.clone()
        self.changed = [each for each, learns in self.parameters if each.requires_grad != learns]
        for each in self.changed:
            each.requires_grad_(not each.requires_grad)

    def __exit__(self, *error: object) -> None:
        for (module, name, _), buffer in zip(self.buffers, self.later, strict=True):
            module._buffers[name] = buffer
        for each in self.changed:
            each.requires_grad_(not each.requires_grad)
