"""The knowledge of the token that predicts a place: the place drawn before, and neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkit.layout import Layout

# Rows and columns from a place to those beside it. In raster order the first three are known, and
# the fourth is the place drawn before.
AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


class Context(nn.Module):
    """Tokens `[B, P, width]` of the places to predict, in the order of prediction.

    Attention finds neighbours late in training, so each token has its drawn neighbours from the
    start. `where` lists the positions of each place in the sequence.
    """

    near: Tensor
    raster: Tensor

    def __init__(
        self, layout: Layout, where: Tensor, inner: int, width: int, random_order: bool
    ) -> None:
        super().__init__()
        count, size = where.shape
        around = AROUND if random_order else AROUND[:3]
        self.register_buffer("near", neighbours(layout, where, around), persistent=False)
        self.places, self.slots = count, 1 + len(around)
        raster = torch.arange(count)[None]
        self.register_buffer("raster", self.known(raster)[0], persistent=False)
        self.inward = nn.Linear(size * inner, width, bias=False)
        self.mix = nn.Linear(width, self.slots * width, bias=False)
        self.target = nn.Embedding(count, width)
        # In raster order the place to predict says which one was drawn before it.
        self.source = nn.Embedding(count, width) if random_order else None

    def known(self, order: Tensor) -> Tensor:
        """Where among `vectors` the parts of each token lie, for orders `[B, P]`: `[B, P, slots]`.

        The vectors of the place after the last one are zeros.
        """
        turn = nn.functional.pad(order.argsort(1), (0, 1), value=self.places)
        beside = self.near[order]
        now = torch.arange(self.places, device=order.device)[None, :, None]
        later = turn.gather(1, beside.flatten(1)).view_as(beside) >= now
        before = nn.functional.pad(order[:, :-1], (1, 0), value=self.places)
        found = torch.cat([before[..., None], beside.masked_fill(later, self.places)], 2)
        return found * self.slots + torch.arange(self.slots, device=order.device)

    def vectors(self, codes: Tensor, places: slice | int) -> Tensor:
        """Parts of tokens that know some places, whose indices are embedded as `[…, D x inner]`.

        They are `[…, slots, width]`: for the place drawn next, and for each neighbour.
        """
        vector = self.inward(codes)
        if self.source is not None:
            vector = vector + self.source.weight[places]
        return self.mix(vector).unflatten(-1, (self.slots, -1))

    def forward(self, codes: Tensor, order: Tensor | None) -> Tensor:
        """Tokens for places whose indices are embedded as `[B, P, D x inner]`, in raster order."""
        vectors = self.vectors(codes, slice(None)).flatten(1, 2)
        vectors = nn.functional.pad(vectors, (0, 0, 0, self.slots))
        if order is None:
            parts = vectors.index_select(1, self.raster.flatten())
            target = self.target.weight
        else:
            known = self.known(order).flatten(1)
            rows = torch.arange(len(order), device=order.device)[:, None] * vectors.shape[1]
            parts = vectors.flatten(0, 1).index_select(0, (rows + known).flatten())
            target = self.target(order)
        return parts.view(len(codes), self.places, self.slots, -1).sum(2) + target


def neighbours(layout: Layout, where: Tensor, around: list[tuple[int, int]]) -> Tensor:
    """The places `[P, len(around)]` beside each place of the same level.

    The number of places stands for one outside the grid.
    """
    # A place is known by its first index, which is of the coarsest level that it has.
    table = torch.stack([layout.level, layout.row, layout.column], 1)[where[:, 0]].tolist()
    number = {tuple(at): place for place, at in enumerate(table)}
    return torch.tensor(
        [
            [number.get((level, row + down, column + right), len(where)) for down, right in around]
            for level, row, column in table
        ]
    )
