"""Optimizers and the course of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from genkit.errors import OptionError
from genkit.run.options import TrainingOptions
from genkit.training.muon import Muon


def optimizer(
    run: TrainingOptions, module: nn.Module, name: str, lr: float
) -> torch.optim.Optimizer:
    """The optimizer of that name: Muon, torch's fused Adam or AdamW, or any of timm's."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    betas = (run.betas[0], run.betas[1])
    if name == "muon":
        for each in module.modules():
            # The rows of a table, such as codes, are separate vectors; Muon is for matrices.
            if isinstance(each, nn.Embedding | nn.EmbeddingBag):
                each.weight.by_adam = True  # type: ignore[attr-defined]
        # Its iterations bear bfloat16, where the run has it and so the machine.
        dtype = torch.bfloat16 if run.mixed_precision == "bf16" else torch.float32
        return Muon(parameters, lr, betas=betas, weight_decay=run.weight_decay, dtype=dtype)
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=lr, betas=betas, weight_decay=run.weight_decay, fused=True)
    # timm takes seconds to import, so only a run that asks for one of its optimizers waits for it.
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    from genkit.plugin.names import nearest

    if name not in (known := list_optimizers()):
        raise OptionError(
            f"there is no optimizer '{name}'.{nearest(name, known)} Known: {', '.join(known)}"
        )
    if get_optimizer_info(name).second_order:
        raise OptionError(
            f"the optimizer '{name}' needs second derivatives, which runs do not have"
        )
    options = {"opt": name, "lr": lr, "weight_decay": run.weight_decay}
    try:
        try:
            made: torch.optim.Optimizer = create_optimizer_v2(parameters, **options, betas=betas)
        except (TypeError, IndexError):  # Some optimizers take no betas, and some three.
            made = create_optimizer_v2(parameters, **options)
    except Exception as error:  # Some need a GPU or a package, and each says so in its own way.
        raise OptionError(f"the optimizer '{name}' cannot be used here: {error}") from error
    return made


def learning_rate(run: TrainingOptions, step: int, height: float) -> float:
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
