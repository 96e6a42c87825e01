"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505)."""

import torch
from torch import nn

from genkit import Quantized


class FSQ(nn.Module):
    """Rounds each channel to one of `bins` values.

    An index is the number of a combination of values of all channels.
    """

    def __init__(self, options, level):
        super().__init__()
        self.bins = options.bins
        self.codebook_size = options.bins**level.channels
        if self.codebook_size > 2**62:
            raise ValueError(
                f"{options.bins} bins in each of {level.channels} channels are too many codes: "
                "use fewer bins or channels"
            )
        self.register_buffer(
            "place", options.bins ** torch.arange(level.channels), persistent=False
        )

    def forward(self, latents):
        scaled = (torch.tanh(latents) + 1) / 2 * (self.bins - 1)
        digits = scaled + (scaled.round() - scaled).detach()
        indices = (digits.round().long() * self.place[:, None, None]).sum(1)
        return Quantized(self._centred(digits), indices, latents.new_zeros(()))

    def decode(self, indices):
        digits = indices[:, None] // self.place[:, None, None] % self.bins
        return self._centred(digits.float())

    def _centred(self, digits):
        return digits * 2 / (self.bins - 1) - 1
