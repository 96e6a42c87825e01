"""Attention with a sigmoid over all pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: float = 0.0) -> Tensor:
    """sigmoid(Q K^T / sqrt(d) + bias) V for Q `[B, N, d]`, K `[B, M, d]`, V `[B, M, e]`: `[B, N, e]`."""
    scores = torch.matmul(queries, keys.transpose(1, 2)) * queries.shape[-1] ** -0.5
    return torch.matmul(torch.sigmoid(scores + bias), values)
