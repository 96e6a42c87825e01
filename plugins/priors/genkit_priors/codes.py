"""Embeddings and logits of indices, and the places that they lie at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.layout import Layout

# A softmax over more codes takes more memory and time than the rest of a prior.
LARGEST = 2**18 - 1


def places(layout: Layout) -> Tensor:
    """The positions `[P, D]` in the sequence of the indices at each place.

    A place is one of the coarsest level, with all finer indices below it. If the grids are no
    multiples of the coarsest one, or are much finer, it is one of any level.
    """
    coarse = layout.grids[-1]
    rows = torch.tensor([grid.rows for grid in layout.grids])[layout.level]
    columns = torch.tensor([grid.columns for grid in layout.grids])[layout.level]
    count = coarse.rows * coarse.columns
    nested = all(
        grid.rows % coarse.rows == 0 and grid.columns % coarse.columns == 0 for grid in layout.grids
    )
    if nested and len(layout) <= count * max(4 * count, 32):
        row, column = layout.row * coarse.rows // rows, layout.column * coarse.columns // columns
        return (row * coarse.columns + column).argsort(stable=True).view(count, -1)
    several = {grid.codebooks for grid in layout.grids}
    return torch.arange(len(layout)).view(-1, several.pop() if len(several) == 1 else 1)


def coordinates(layout: Layout) -> Tensor:
    """The centre (row, column) `[N, 2]` of each index, in units of the finest grid."""
    finest = layout.grids[0]
    sizes = torch.tensor([[grid.rows, grid.columns] for grid in layout.grids])[layout.level]
    at = torch.stack([layout.row, layout.column], 1) + 0.5
    return at * torch.tensor([finest.rows, finest.columns]) / sizes


class Codes(nn.Module):
    """A table of embeddings and one of logits for the codes of every level and codebook.

    `kinds` lists, per level and codebook, the positions of its indices and its rows of the tables.
    """

    start: Tensor
    size: Tensor
    back: Tensor

    def __init__(self, layout: Layout, inner: int, outer: int) -> None:
        super().__init__()
        self.kinds: list[tuple[slice, slice]] = []
        self.levels: list[range] = []
        begin = total = 0
        start = torch.zeros_like(layout.size)
        for level, grid in reversed(list(enumerate(layout.grids))):
            if grid.codebook_size > LARGEST:
                raise ValueError(
                    f"a prior takes codebooks of up to {LARGEST} codes, but level {level} has "
                    f"codebooks of {grid.codebook_size}; train the tokenizer with several smaller "
                    "codebooks"
                )
            self.levels.append(range(total, total + grid.codebooks * grid.codebook_size))
            for codebook in range(grid.codebooks):
                where = slice(begin + codebook, begin + len(grid), grid.codebooks)
                start[where] = total
                self.kinds.append((where, slice(total, total + grid.codebook_size)))
                total += grid.codebook_size
            begin += len(grid)
        positions = torch.arange(len(layout))
        back = torch.cat([positions[where] for where, _ in self.kinds]).argsort()
        self.register_buffer("back", back, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("size", layout.size.clone(), persistent=False)
        # This and all other tables keep PyTorch's initial values, of variance 1. From smaller ones,
        # as language models have, a short training reaches much less: its first steps are larger.
        self.embedding = nn.Embedding(total, inner)
        self.head = nn.Linear(outer, total, bias=False)
        nn.init.zeros_(self.head.weight)

    def embed(self, sequence: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """Embeddings `[B, N, inner]` of indices at these positions, or at all."""
        start = self.start
        if positions is not None:  # A list as an index would be copied to the GPU.
            start = torch.stack([start[each] for each in positions])
        result: Tensor = self.embedding(sequence + start)
        return result

    def logits(self, features: Tensor, position: int) -> Tensor:
        """Logits `[B, K]` of the codes at one position, from features `[B, outer]`."""
        rows = next(
            rows
            for where, rows in self.kinds
            if position in range(where.start, where.stop, where.step)
        )
        return F.linear(features, self.head.weight[rows]).float()

    def logits_at(self, features: Tensor, level: int) -> Tensor:
        """Logits `[…, codebooks, K]` of a level, counted from the coarsest."""
        rows = [rows for _, rows in self.kinds if rows.start in self.levels[level]]
        weight = self.head.weight[rows[0].start : rows[-1].stop]
        return F.linear(features, weight).float().unflatten(-1, (len(rows), -1))

    def nats_at(
        self, features: Tensor, targets: Tensor, level: int, smoothing: float = 0.0
    ) -> Tensor:
        """Nats `[M, codebooks]` of a level's indices, from features `[M, outer]`."""
        logits = self.logits_at(features, level)
        nats = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        return nats.view_as(targets)

    def nats(self, features: Tensor, sequence: Tensor) -> Tensor:
        """Nats `[B, N]` of a sequence, from features `[B, N, outer]`."""
        parts = []
        for where, rows in self.kinds:
            logits = F.linear(features[:, where], self.head.weight[rows]).float()
            targets = sequence[:, where]
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            parts.append(nats.view_as(targets))
        return torch.cat(parts, 1)[:, self.back]

    def noisy(self, sequence: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """The sequence with about this share of its indices replaced at random."""
        if not share:
            return sequence
        replaced, other = torch.rand(2, *sequence.shape, generator=generator).to(sequence.device)
        return torch.where(replaced < share, (other * self.size).long(), sequence)
