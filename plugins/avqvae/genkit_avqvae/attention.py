"""Residual pixel attention (Eqs. 2 and 3, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genkit import NoOptions
from genkit.ops import sigmoid_attention
from genkit_avqvae import PixelOptions


class Pixel(nn.Module):
    """V1 + sigmoid(Q K^T / sqrt(dim) + b) V2 over all pairs of pixels.

    Q is a 1x1 convolution of the features, K one of the context; the caller gives the values. With
    `norm=logn`, b is -log N for N context pixels, so that a row of weights initially sums to about
    1. `div_n` divides by N instead. `none` is the authors' form: rows sum to about N / 2.
    """

    def __init__(self, options: PixelOptions, channels: int) -> None:
        super().__init__()
        self.norm = options.norm
        self.query = nn.Conv2d(channels, options.dim, 1)
        self.key = nn.Conv2d(channels, options.dim, 1)

    def forward(
        self,
        features: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        context_values: Tensor | None = None,
    ) -> Tensor:
        """Values `[B, D, h, w]` plus the attended values; see `genkit.interfaces`."""
        context = features if context is None else context
        context_values = values if context_values is None else context_values
        queries, keys, attended = (
            x.flatten(2).transpose(1, 2)
            for x in (self.query(features), self.key(context), context_values)
        )
        pixels = keys.shape[1]
        added = sigmoid_attention(
            queries, keys, attended, -_log(pixels, keys) if self.norm == "logn" else 0.0
        )
        if self.norm == "div_n":
            added = added / pixels
        return values + added.transpose(1, 2).reshape(values.shape)


def _log(number: int, beside: Tensor) -> float | Tensor:
    """The logarithm of a size.

    During export, sizes may be symbolic, so it is a tensor with the dtype and device of `beside`.
    """
    if torch.compiler.is_exporting():
        return torch.full((), number, dtype=beside.dtype, device=beside.device).log()
    return math.log(number)


class NoAttention(nn.Module):
    """The unchanged values."""

    def __init__(self, options: NoOptions, channels: int) -> None:
        super().__init__()

    def forward(
        self,
        features: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        context_values: Tensor | None = None,
    ) -> Tensor:
        """The values `[B, D, h, w]`."""
        return values
