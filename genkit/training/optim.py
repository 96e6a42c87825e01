"""Optimizers and the course of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from genkit.errors import OptionError
from genkit.run import Run


def optimizer(run: Run, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer` names: torch's fused Adam or AdamW, or any of timm's."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    betas = (run.betas[0], run.betas[1])
    if run.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if run.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=lr, betas=betas, weight_decay=run.weight_decay, fused=True)
    # timm takes seconds to import, so only a run that asks for one of its optimizers waits for it.
    from timm.optim import create_optimizer_v2, list_optimizers

    from genkit.registry import nearest

    if run.optimizer not in (known := list_optimizers()):
        raise OptionError(
            f"there is no optimizer '{run.optimizer}'.{nearest(run.optimizer, known)} "
            f"Known: {', '.join(known)}"
        )
    options = {"opt": run.optimizer, "lr": lr, "weight_decay": run.weight_decay}
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(parameters, **options, betas=betas)
    except TypeError:  # One of the optimizers that know no betas.
        made = create_optimizer_v2(parameters, **options)
    return made


def learning_rate(run: Run, step: int, height: float) -> float:
    """The learning rate of a step: a linear rise in the warm-up, then constant or half a cosine."""
    rise = min(1.0, (step + 1) / run.warmup) if run.warmup else 1.0
    if run.schedule == "constant":
        return height * rise
    passed = max(0, step - run.warmup) / max(1, run.steps - run.warmup)
    return (
        height
        * rise
        * (run.final_lr + (1 - run.final_lr) * (1 + math.cos(math.pi * min(1.0, passed))) / 2)
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
