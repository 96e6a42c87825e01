"""Independent indices, each with a distribution of its own."""

from collections.abc import Sequence

import torch
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Layout
from genkit.ops.sampling import draw, shaped
from torch import Tensor, nn

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """The logits of a position follow from the position and the class alone."""

    exact = True
    rules = ("temperature", "top_k", "top_p")

    def __init__(
        self, options: TemplateNameOptions, layout: Layout, conditioning: Conditioning
    ) -> None:
        super().__init__()
        # The last row is for images without a class.
        shape = conditioning.classes + 1, len(layout), options.width
        self.places = nn.Parameter(torch.randn(shape) / options.width**0.5)
        self.codes = nn.Linear(options.width, int(layout.size.max()))
        # A new prior holds all codes for equally likely.
        nn.init.zeros_(self.codes.weight)
        nn.init.zeros_(self.codes.bias)
        # Smaller codebooks end earlier.
        beyond = torch.arange(int(layout.size.max())) >= layout.size[:, None]
        self.register_buffer("beyond", beyond, persistent=False)

    def logits(self, condition: Tensor | None, batch: int) -> Tensor:
        """The logits `[B, N, codes]` of every position."""
        if condition is None or condition.ndim > 1:  # It does not look at vectors.
            condition = torch.full((batch,), -1)
        rows = self.codes(self.places[condition.to(self.places.device)])
        return rows.float().masked_fill(self.beyond, -torch.inf)

    def loss(
        self, sequence: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Nats per index, a scalar."""
        return self.nats(sequence, condition).mean()

    def nats(self, sequence: Tensor, condition: Tensor | None) -> Tensor:
        """The negative log-likelihood `[B, N]` of each index of sequences `[B, N]`."""
        logs = self.logits(condition, len(sequence)).log_softmax(-1)
        return -logs.gather(-1, sequence[..., None])[..., 0]

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor | None,
        kept: Tensor | None,
        generators: Sequence[torch.Generator],
        rules: Rules,
    ) -> Tensor:
        """A sequence `[B, N]` for each generator; `kept` holds -1 where to draw an index."""
        logits = shaped(self.logits(condition, len(generators)), rules)
        chance = torch.stack([torch.rand(logits.shape[1], generator=each) for each in generators])
        drawn = draw(logits, chance)
        return drawn if kept is None else torch.where(kept < 0, drawn, kept)
