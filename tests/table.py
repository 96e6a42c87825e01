"""A prior of a few lines: independent logits for each position, and for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import genkit
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Layout
from genkit.ops.sampling import draw, guided, shaped

# A training of a second.
QUICK: dict[str, Any] = {
    "prior": "table",
    "data": {"heldout": 8, "size": 500},
    "optimizer": "adamw",
    "schedule": "cosine",
    **{
        "steps": 20,
        "batch_size": 8,
        "lr": 0.3,
        "warmup": 0,
        "ema": 0.0,
        "shown": 2,
        "report": False,
    },
    **{"validation_images": 8, "log_every": 10, "validate_every": 10},
}


class Table(nn.Module):
    """Logits `[classes + 1, N, K]`; the last class stands for none, vectors are ignored."""

    rules = ("temperature", "top_k", "top_p", "guidance")
    exact = True

    def __init__(self, options: Any, layout: Layout, conditioning: Conditioning) -> None:
        super().__init__()
        self.none = conditioning.classes
        shape = self.none + 1, len(layout), int(layout.size.max())
        self.logits = nn.Parameter(torch.zeros(shape))
        self.register_buffer("outside", torch.arange(shape[2]) >= layout.size[:, None])

    def of(self, condition: Tensor | None, count: int) -> Tensor:
        if condition is None or condition.ndim > 1:
            condition = torch.full((count,), -1, device=self.logits.device)
        logits = self.logits[torch.where(condition < 0, self.none, condition)]
        return logits.masked_fill(self.outside, -torch.inf)

    def nats(self, sequence: Tensor, condition: Tensor | None) -> Tensor:
        chances = self.of(condition, len(sequence)).log_softmax(-1)
        return -chances.gather(-1, sequence[..., None])[..., 0]

    def loss(
        self, sequence: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        dropped = torch.rand(len(sequence), generator=generator) < 0.1
        if condition is not None and condition.ndim == 1:
            condition = torch.where(dropped.to(condition.device), -1, condition)
        return self.nats(sequence, condition).mean()

    def sample(
        self,
        condition: Tensor | None,
        kept: Tensor | None,
        generators: Sequence[torch.Generator],
        rules: Rules,
    ) -> Tensor:
        count, positions = len(generators), self.logits.shape[1]
        logits = self.of(condition, count)
        if rules.guidance != 1:
            logits = guided(logits, self.of(None, count), rules.guidance)
        chance = torch.stack([torch.rand(positions, generator=each) for each in generators])
        drawn = draw(shaped(logits, rules), chance)
        return drawn if kept is None else torch.where(kept < 0, drawn, kept)


def heldout_of(run: Path) -> Any:
    """The held-out images of a prior's run."""
    from genkit.evaluation.images import evaluation_images

    return evaluation_images(str(run), genkit.inspect(run), None, (32, 32)).images
