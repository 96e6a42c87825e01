"""Binary quantizers, whose codes are signs and need no codebook lookup."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import LFQ

from genkit import Level
from genkit.distributed import all_sum, processes
from genkit_zoo import BinaryOptions
from genkit_zoo.wrapped import Wrapped, mean_square

# Smallest log assignment to half of a code. The product of two such assignments is still a normal
# float with a finite log.
_LEAST_LOG = -40.0


class Binary(Wrapped):
    """Lookup-free quantization: the signs of a few channels (Yu et al. 2023, arXiv 2310.05737).

    The loss is commitment_weight * |z - sg(e)|^2 plus entropy_weight times an entropy loss (Eq. 5):
    the mean entropy of the latents' soft assignments minus `diversity` times the entropy of their
    mean over all processes, with assignments softmax(2 z e / temperature).

    The library needs a latents x codes table of these assignments, and discards the values that it
    gathers from other processes. Here the same entropies are computed exactly from products of two
    halves of the bits, with memory for latents x sqrt(codes).
    """

    _spherical = False

    def __init__(self, options: BinaryOptions, level: Level) -> None:
        inner = LFQ(
            dim=level.channels,
            codebook_size=2**options.bits,
            num_codebooks=options.codebooks,
            keep_num_codebooks_dim=True,
            spherical=self._spherical,
        )
        super().__init__(inner, 2**options.bits, options.codebooks)
        # Only the library's entropy loss needs the table of all codes.
        del inner.codebook
        # This lambda cannot be pickled.
        del inner.maybe_l2norm
        self.options = options
        self.scale = options.bits**-0.5 if self._spherical else 1.0

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Wrapped`."""
        entered = self.inner.project_in(flat).unflatten(-1, (self.codebooks, self.options.bits))
        if self._spherical:
            entered = F.normalize(entered, dim=-1)
        positive = entered > 0
        codes = torch.where(positive, self.scale, -self.scale)
        loss = self.options.commitment_weight * mean_square(entered, codes)
        if self.training and self.options.entropy_weight:
            loss = loss + self.options.entropy_weight * self._entropy_loss(entered.flatten(0, 1))
        through = entered + (codes - entered).detach()
        quantized: Tensor = self.inner.project_out(through.flatten(-2))
        return quantized, (positive * self.inner.mask).sum(-1), loss

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        bits = (indices[..., None] & self.inner.mask) != 0
        codes = torch.where(bits, self.scale, -self.scale)
        return self.inner.project_out(codes.flatten(-2))

    def _entropy_loss(self, entered: Tensor) -> Tensor:
        """The entropy loss of latents `[N, Q, bits]`."""
        # Bits are independent: the assignment to a code is the product over its bits.
        logits = 4 * self.scale * entered / self.options.temperature
        sure, unsure = F.logsigmoid(logits), F.logsigmoid(-logits)
        single = -(sure.exp() * sure + unsure.exp() * unsure).sum(-1).mean()
        half = self.options.bits // 2
        first = _assignments(sure[..., :half], unsure[..., :half])
        second = _assignments(sure[..., half:], unsure[..., half:])
        mean = torch.einsum("nqa,nqb->qab", first, second) / len(entered)
        # The mean over all processes. The gradient only reaches this process's share, because
        # gradients are averaged later.
        mean = mean + (all_sum(mean.detach().clone()) / processes() - mean).detach()
        batch = -(mean * mean.log()).sum((1, 2)).mean()
        return single - self.options.diversity * batch


class Spherical(Binary):
    """Binary spherical quantization: the signs of a unit vector (Zhao et al. 2024, 2406.07548)."""

    _spherical = True


def _assignments(sure: Tensor, unsure: Tensor) -> Tensor:
    """Assignments `[N, Q, 2^b]` to all combinations of b bits, from log probabilities per bit."""
    result = sure.new_zeros(*sure.shape[:2], 1)
    for one, zero in zip(sure.unbind(-1), unsure.unbind(-1), strict=True):
        both = torch.stack([zero, one], dim=-1)
        result = (result[..., None] + both[..., None, :]).flatten(-2)
    # The clamp avoids subnormal products, which are a hundred times slower.
    return result.clamp(min=_LEAST_LOG).exp()
