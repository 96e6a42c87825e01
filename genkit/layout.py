"""The sequence of an image's indices, as priors see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genkit.errors import GenkitError

if TYPE_CHECKING:
    from genkit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Grid:
    """The indices of one level: rows, columns, codebooks, and the codes of each codebook."""

    rows: int
    columns: int
    codebooks: int
    codebook_size: int

    def __len__(self) -> int:
        return self.rows * self.columns * self.codebooks


class Layout:
    """The sequence `[B, N]` of the indices of an image.

    It begins with the coarsest level. A level runs row by row, and within a place codebook by
    codebook. `grids` lists the levels, finest first. For each position, `level`, `row`, `column`,
    `codebook` and `size`, int64 `[N]`, say where its index lies and how many codes it can be.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = tuple(grids)
        columns = []
        for number, grid in reversed(list(enumerate(self.grids))):
            place = torch.cartesian_prod(
                torch.tensor([number]),
                *map(torch.arange, (grid.rows, grid.columns, grid.codebooks)),
                torch.tensor([grid.codebook_size]),
            )
            columns.append(place.reshape(-1, 5))
        self.level, self.row, self.column, self.codebook, self.size = torch.cat(columns).T

    @classmethod
    def of(cls, tokenizer: Tokenizer, height: int, width: int) -> Layout:
        """The layout of a tokenizer's indices of images of `height` and `width` in pixels."""
        pairs = zip(tokenizer.levels, tokenizer.codebooks, strict=True)
        return cls(
            [Grid(*level.grid(height, width), count, size) for level, (count, size) in pairs]
        )

    def __len__(self) -> int:
        return sum(map(len, self.grids))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.grids == other.grids

    def __hash__(self) -> int:
        return hash(self.grids)

    def __repr__(self) -> str:
        return f"Layout({', '.join(map(str, self.grids))})"

    def flatten(self, indices: Sequence[Tensor]) -> Tensor:
        """The sequence int64 `[B, N]` of indices as `Tokenizer.encode` returns them.

        `GenkitError` if they have other grids.
        """
        found = [tuple(level.shape[1:]) for level in indices]
        wanted = [self._shape(grid) for grid in self.grids]
        if found != wanted:
            raise GenkitError(f"the indices have grids {found}, but this prior needs {wanted}")
        return torch.cat([level.flatten(1) for level in reversed(indices)], 1).long()

    def unflatten(self, sequence: Tensor) -> list[Tensor]:
        """The indices per level, finest first, of a sequence `[B, N]`."""
        parts = sequence.split([len(grid) for grid in reversed(self.grids)], 1)
        return [
            part.reshape(len(part), *self._shape(grid))
            for part, grid in zip(reversed(parts), self.grids, strict=True)
        ]

    @staticmethod
    def _shape(grid: Grid) -> tuple[int, ...]:
        several = (grid.codebooks,) if grid.codebooks > 1 else ()
        return (grid.rows, grid.columns, *several)

    def table(self) -> list[dict[str, Any]]:
        """The grids as metadata; `read` makes a layout of them."""
        return [
            {
                "grid": [grid.rows, grid.columns],
                "codebooks": grid.codebooks,
                "codebook_size": grid.codebook_size,
            }
            for grid in self.grids
        ]

    @classmethod
    def read(cls, table: Sequence[Mapping[str, Any]]) -> Layout:
        """The layout that `table` describes."""
        return cls(
            [
                Grid(rows, columns, row["codebooks"], row["codebook_size"])
                for row in table
                for rows, columns in [row["grid"]]
            ]
        )
