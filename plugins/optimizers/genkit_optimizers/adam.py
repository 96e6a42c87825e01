"""PyTorch's Adam and AdamW in the fused implementation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from genkit_optimizers import AdamOptions
from genkit_optimizers.base import Optimizer


class Adam(Optimizer, torch.optim.Adam):
    """PyTorch's Adam, whose own `step` imports PyTorch's compiler."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters with a gradient. A closure, if given, computes the loss first."""
        return inspect.unwrap(torch.optim.Adam.step)(self, closure)


def adam(options: AdamOptions, module: nn.Module, lr: float, dtype: torch.dtype) -> Adam:
    """Adam over the module's trainable parameters (Kingma and Ba, arXiv 1412.6980)."""
    return Adam(**_arguments(options, module, lr))


def adamw(options: AdamOptions, module: nn.Module, lr: float, dtype: torch.dtype) -> Adam:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    return Adam(**_arguments(options, module, lr), decoupled_weight_decay=True)


def _arguments(options: AdamOptions, module: nn.Module, lr: float) -> dict[str, Any]:
    return {
        "params": [each for each in module.parameters() if each.requires_grad],
        "lr": lr,
        "betas": options.betas,
        "weight_decay": options.weight_decay,
        "fused": True,
    }
