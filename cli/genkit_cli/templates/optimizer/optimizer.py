"""Sign descent with momentum."""

from typing import Any

import torch
from torch import nn

from genkit_template_name import TemplateNameOptions


class TemplateName(torch.optim.Optimizer):
    """Moves each weight by lr against the sign of its mean gradient."""

    def __init__(
        self, options: TemplateNameOptions, module: nn.Module, lr: float, dtype: torch.dtype
    ) -> None:
        trained = [each for each in module.parameters() if each.requires_grad]
        super().__init__(trained, {"lr": lr, "momentum": options.momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; training sets the learning rate of each group before."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    mean = state.setdefault("mean", torch.zeros_like(weight))
                    mean.lerp_(weight.grad, 1 - group["momentum"])
                    weight.sub_(group["lr"] * mean.sign())
