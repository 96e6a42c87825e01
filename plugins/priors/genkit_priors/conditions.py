"""Conditions as tokens before an image's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkit.interfaces import Conditioning

# The rules of sampling that a prior with conditions follows beside others.
GUIDANCE = ["guidance", "guidance_schedule", "guidance_power"]


class Prefix(nn.Module):
    """A condition as a prefix of tokens: one for a class, one per vector, a learned one for none.

    `length` is the number of tokens. Tokens of padding are to be masked.
    """

    empty: Tensor

    def __init__(self, conditioning: Conditioning, width: int) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.register_buffer("empty", torch.empty(1, 0, width), persistent=False)
        self.length = conditioning.length if conditioning.channels else int(bool(conditioning))
        if conditioning.classes:
            # The last row stands for no class.
            self.classes = nn.Embedding(conditioning.classes + 1, width)
        if conditioning.channels:
            self.inward = nn.Linear(conditioning.channels, width, bias=False)
            self.slots = nn.Embedding(self.length, width)
            self.null = nn.Embedding(1, width)

    def dropped(
        self, condition: Tensor | None, share: float, generator: torch.Generator
    ) -> Tensor | None:
        """The condition, left out of about this share of the images."""
        if condition is None or not share:
            return condition
        dropped = (torch.rand(len(condition), generator=generator) < share).to(condition.device)
        if self.conditioning.classes:
            return condition.masked_fill(dropped, -1)
        return condition.masked_fill(dropped[:, None, None], 0)

    def without(self, condition: Tensor) -> Tensor:
        """The same number of images without a condition."""
        return torch.full_like(condition, -1 if self.conditioning.classes else 0)

    def forward(self, condition: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """Tokens `[B, T, width]`, and where they are no padding `[B, T]`, None for everywhere."""
        if not self.conditioning:
            return self.empty.expand(batch, 0, -1), None
        device = self.empty.device
        if self.conditioning.classes:
            if condition is None:
                condition = torch.full((batch,), -1, device=device)
            return self.classes(condition % (self.conditioning.classes + 1))[:, None], None
        shape = batch, self.length, self.conditioning.channels
        given = torch.zeros(shape, device=device)
        if condition is not None:
            given[:, : condition.shape[1]] = condition
        real = given.any(-1)
        without = ~real.any(-1)
        first = torch.arange(self.length, device=device) == 0
        # An image without vectors has one learned token.
        alone = without[:, None] & first
        tokens = torch.where(alone[..., None], self.null.weight, self.inward(given))
        return tokens + self.slots.weight, real | alone
