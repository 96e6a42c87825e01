"""The base class that adapts the library's quantizers to genkit's interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Quantized


class Wrapped(nn.Module, ABC):
    """A quantizer that wraps a module of the library for latents `[B, N, C]`.

    `inner` returns latents, indices `[B, N]` or `[B, N, Q]`, and losses. In eval mode, `forward`
    returns exactly the latents that `decode` returns.
    """

    def __init__(self, inner: nn.Module, codebook_size: int, codebooks: int = 1) -> None:
        super().__init__()
        self.inner: Any = inner
        self.codebook_size = codebook_size
        self.codebooks = codebooks

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents `[B, C, h, w]`; see `genkit.interfaces.Quantizer`."""
        flat, indices, loss = self.quantize(latents.flatten(2).transpose(1, 2))
        indices = indices.long().unflatten(1, latents.shape[2:])
        if self.codebooks == 1 and indices.ndim == 4:
            indices = indices[..., 0]
        quantized = _to_latents(flat, latents.shape) if self.training else self.decode(indices)
        return Quantized(quantized, indices, loss.sum())

    def decode(self, indices: Tensor) -> Tensor:
        """Quantized latents `[B, C, h, w]` of indices `[B, h, w]` or `[B, h, w, Q]`."""
        height, width = indices.shape[1:3]
        flat = self.codes(indices.reshape(indices.shape[0], -1, self.codebooks))
        return _to_latents(flat, (indices.shape[0], 0, height, width))

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents `[B, N, C]`, indices and loss of latents `[B, N, C]`."""
        quantized, indices, loss = self.inner(flat)
        return quantized, indices, loss

    @abstractmethod
    def codes(self, indices: Tensor) -> Tensor:
        """The latents `[B, N, C]` of indices `[B, N, Q]`."""


def mean_square(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference; 0 during export, which leaves out losses."""
    return one.new_zeros(()) if torch.compiler.is_exporting() else F.mse_loss(one, other)


def _to_latents(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    return flat.transpose(1, 2).reshape(shape[0], -1, shape[2], shape[3]).contiguous()
