"""A quantizer with a logit for each code: the Gumbel quantizer of VQGAN and DALL-E."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Level, Quantized
from genkit.ops import HostNumber
from genkit_vqgan import CategoricalOptions


class Categorical(nn.Module):
    """Takes the code with the largest of K logits, which are a 1x1 convolution of the latents.

    In training, codes are drawn with Gumbel noise: softmax((logits + g) / temperature) weighs the
    codes (Jang et al. 2016, arXiv 1611.01144, Eq. 2), or, straight through, is the gradient of its
    largest entry. The temperature falls exponentially over the first `anneal` steps. The loss is
    kl_weight times the mean over places of KL(softmax(logits) || uniform) (Ramesh et al. 2021,
    DALL-E, arXiv 2102.12092, section 2.1).
    """

    updates: Tensor

    def __init__(self, options: CategoricalOptions, level: Level) -> None:
        super().__init__()
        self.options = options
        self.codebook_size = options.codebook_size
        self.logits = nn.Conv2d(level.channels, options.codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(options.codebook_size, level.channels))
        self.codebook.by_adam = True  # type: ignore[attr-defined]
        # Not persistent: only training needs it, so model files leave it out.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)
        self._updates = HostNumber()

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents `[B, C, h, w]`; see `genkit.interfaces.Quantizer`."""
        logits = self.logits(latents)
        # Exported graphs leave out losses.
        exported = torch.compiler.is_exporting()
        loss = logits.new_zeros(()) if exported else self._loss(logits)
        if not self.training:
            indices = logits.argmax(1)
            return Quantized(self.decode(indices), indices, loss)
        shares = F.gumbel_softmax(
            logits, self._temperature(), hard=self.options.straight_through, dim=1
        )
        self._updates.add_one(self.updates)
        quantized = torch.einsum("bkhw,kc->bchw", shares, self.codebook)
        return Quantized(quantized, shares.argmax(1), loss)

    def decode(self, indices: Tensor) -> Tensor:
        """The quantized latents `[B, C, h, w]` of indices `[B, h, w]`."""
        return F.embedding(indices, self.codebook).permute(0, 3, 1, 2).contiguous()

    def _loss(self, logits: Tensor) -> Tensor:
        """The weighted mean over places of the divergence from even probabilities, in nats."""
        shares = logits.log_softmax(1)
        divergence = (shares.exp() * (shares + math.log(self.codebook_size))).sum(1)
        return self.options.kl_weight * divergence.mean()

    def _temperature(self) -> float:
        start, end = self.options.temperature, self.options.final_temperature
        passed = min(1.0, self._updates.of(self.updates) / self.options.anneal)
        return float(start * (end / start) ** passed)
