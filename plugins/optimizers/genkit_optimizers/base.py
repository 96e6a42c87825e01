"""The base of this package's optimizers, which starts faster than PyTorch's."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Optimizer(torch.optim.Optimizer):
    """PyTorch's base of optimizers without the import of PyTorch's compiler.

    PyTorch exempts these two methods from compilation. At their first call they import the
    compiler, for a third of the time that a run takes until its first step.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters."""
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)
