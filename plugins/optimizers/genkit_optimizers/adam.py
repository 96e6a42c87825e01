"""PyTorch's Adam and AdamW in the fused implementation."""

from __future__ import annotations

import torch
from torch import nn

from genkit_optimizers import AdamOptions


def adam(
    options: AdamOptions, module: nn.Module, lr: float, dtype: torch.dtype
) -> torch.optim.Adam:
    """Adam over the module's trainable parameters (Kingma and Ba, arXiv 1412.6980)."""
    beta1, beta2 = options.betas
    return torch.optim.Adam(
        [each for each in module.parameters() if each.requires_grad],
        lr=lr,
        betas=(beta1, beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )


def adamw(
    options: AdamOptions, module: nn.Module, lr: float, dtype: torch.dtype
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    beta1, beta2 = options.betas
    return torch.optim.AdamW(
        [each for each in module.parameters() if each.requires_grad],
        lr=lr,
        betas=(beta1, beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )
