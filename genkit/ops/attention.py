"""Attention with a sigmoid over all pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: float | Tensor = 0.0
) -> Tensor:
    """sigmoid(Q K^T / sqrt(d) + bias) V, of shape `[B, N, e]`.

    The queries Q are `[B, N, d]`, the keys K `[B, M, d]`, the values V `[B, M, e]`.
    """
    scores = torch.matmul(queries, keys.transpose(1, 2)) * queries.shape[-1] ** -0.5
    return torch.matmul(torch.sigmoid(scores + bias), values)
