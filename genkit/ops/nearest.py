"""Nearest-code search."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 1 << 20


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices int64 `[N]` of the codes `[K, d]` nearest to latents `[N, d]`.

    The distance is Euclidean; of codes equally near the lowest index is taken. Tokens are taken in
    tiles, so that memory is O(N + K d) and the N x K distances never exist at once.
    """
    latents, codebook = latents.float(), codebook.float()
    squares, transposed = codebook.square().sum(1), codebook.t()
    # An exported graph has one tile, so that it takes any number of latents.
    tiled = not torch.compiler.is_exporting()
    parts = latents.split(max(1, _TILE // len(codebook))) if tiled else [latents]
    # |x - e|^2 less |x|^2, which is the same for every code.
    tiles = [torch.addmm(squares, part, transposed, alpha=-2).argmin(1) for part in parts]
    return torch.cat(tiles) if tiles else latents.new_empty(0, dtype=torch.int64)
