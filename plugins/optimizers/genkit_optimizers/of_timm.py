"""timm's optimizers."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from genkit.errors import OptionError
from genkit.plugin.names import nearest
from genkit_optimizers import TimmOptions


def of_timm(
    options: TimmOptions, module: nn.Module, lr: float, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """A timm optimizer over the module's trainable parameters.

    `OptionError` if timm has no optimizer of that name, or if it cannot be used.
    """
    name = options.algorithm
    if name not in (known := list_optimizers()):
        raise OptionError(
            f"timm has no optimizer '{name}'.{nearest(name, known)} Known: {', '.join(known)}"
        )
    info = get_optimizer_info(name)
    if info.second_order:
        raise OptionError(
            f"the optimizer '{name}' needs second derivatives, which training does not compute: "
            "choose another --optimizer"
        )
    takes_betas = info.has_betas and info.num_betas == 2
    if not takes_betas and options.betas != TimmOptions.betas:
        raise OptionError(f"the optimizer '{name}' does not take two betas: leave out --betas")
    parameters = [each for each in module.parameters() if each.requires_grad]
    betas = {"betas": options.betas} if takes_betas else {}
    try:
        return create_optimizer_v2(
            parameters, opt=name, lr=lr, weight_decay=options.weight_decay, **betas
        )
    except Exception as error:  # Some need a GPU or a package, and each says so in its own way.
        raise OptionError(f"the optimizer '{name}' cannot be used here: {error}") from error
