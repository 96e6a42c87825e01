"""Codes that are signs, so that none has to be looked up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import LFQ

from genkit import Level
from genkit.distributed import all_sum, processes
from genkit_zoo import BinaryOptions
from genkit_zoo.wrapped import Wrapped, mean_square

# Of an assignment to half of a code. Its square is still a normal number, whose log is finite.
_LEAST_LOG = -40.0


class Binary(Wrapped):
    """Lookup-free quantization: the signs of a few channels (Yu et al. 2023, arXiv 2310.05737).

    The loss is commitment_weight * |z - sg(e)|^2 and entropy_weight times the mean entropy of the
    latents' soft assignments less `diversity` times the entropy of their mean over all processes
    (Eq. 5), with assignments softmax(2 z e / temperature).

    The library makes a table of latents times codes of these assignments, and drops what it
    gathers from other processes. Here the same entropies come from products of two halves of the
    bits: exactly, in the memory of latents times the square root of codes.
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
        # All codes at once serve the library's entropy alone.
        del inner.codebook
        # A lambda, which cannot be pickled.
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
        # The assignment of a code is the product of those of its bits, which are independent.
        logits = 4 * self.scale * entered / self.options.temperature
        sure, unsure = F.logsigmoid(logits), F.logsigmoid(-logits)
        single = -(sure.exp() * sure + unsure.exp() * unsure).sum(-1).mean()
        half = self.options.bits // 2
        first = _assignments(sure[..., :half], unsure[..., :half])
        second = _assignments(sure[..., half:], unsure[..., half:])
        mean = torch.einsum("nqa,nqb->qab", first, second) / len(entered)
        # Of all processes; each passes its gradient on to its own part, as they are averaged later.
        mean = mean + (all_sum(mean.detach().clone()) / processes() - mean).detach()
        batch = -(mean * mean.log()).sum((1, 2)).mean()
        return single - self.options.diversity * batch


class Spherical(Binary):
    """Binary spherical quantization: the signs of a unit vector (Zhao et al. 2024, 2406.07548)."""

    _spherical = True


def _assignments(sure: Tensor, unsure: Tensor) -> Tensor:
    """Assignments `[N, Q, 2^b]` to all combinations of b bits, given their logs for each bit."""
    result = sure.new_zeros(*sure.shape[:2], 1)
    for one, zero in zip(sure.unbind(-1), unsure.unbind(-1), strict=True):
        both = torch.stack([zero, one], dim=-1)
        result = (result[..., None] + both[..., None, :]).flatten(-2)
    # Products of numbers that are not normal are a hundred times slower.
    return result.clamp(min=_LEAST_LOG).exp()
