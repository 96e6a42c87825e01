"""The comparison that decides a nearest-code search: distances of a few candidates, exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.ops.precision import finest

# Values of the candidates that are compared at a time, which fit a core's cache.
_SLICE = 2**16
# A GPU needs as much work at a time as this many cores.
_GPU = 32
HALF_ULP = 2.0**-24


def settle(
    tokens: Tensor, codes: Tensor, latents: Tensor, codebook: Tensor, indices: Tensor
) -> None:
    """Write the nearest of each latent's candidates, which come in pairs."""
    indices[tokens] = codes
    # A difference has an error of one ulp, and a sum of squares one ulp per term.
    slack = 4 * (latents.shape[1] + 4) * HALF_ULP
    first = torch.promote_types(latents.dtype, codebook.dtype)
    for dtype, share in ((first, 1 + slack), (finest(latents.device), 1.0)):
        several = torch.bincount(tokens, minlength=len(latents))[tokens] > 1
        again = several.nonzero().squeeze(1)
        if not len(again):
            return
        tokens, codes = tokens[again], codes[again]
        size = max(1, _SLICE * cores(latents.device) // latents.shape[1])
        slices = zip(tokens.split(size), codes.split(size), strict=True)
        distances = torch.cat(
            [
                latents.index_select(0, some)
                .to(dtype)
                .sub_(codebook.index_select(0, others).to(dtype))
                .square_()
                .sum(1)
                for some, others in slices
            ]
        )
        least = _least(distances, tokens, distances.new_full((len(latents),), math.inf))
        near = (distances <= least[tokens] * share).nonzero().squeeze(1)
        tokens, codes = tokens[near], codes[near]
        # The lowest index among equally near codes.
        _least(codes, tokens, indices)


def _least(values: Tensor, places: Tensor, into: Tensor) -> Tensor:
    """Write the least of all values of each place into that place; the others stay."""
    if values.is_cpu:
        return into.scatter_reduce_(0, places, values, "amin", include_self=False)
    # GPUs refuse `scatter_reduce_` where a program asks for deterministic operations.
    values, order = values.sort()
    places, groups = places[order].sort(stable=True)
    starts = torch.cat([places.new_ones(1, dtype=torch.bool), places[1:] != places[:-1]])
    into[places[starts]] = values[groups][starts]
    return into


def cores(device: torch.device) -> int:
    """The number of cores whose caches hold what is computed at a time."""
    return torch.get_num_threads() if device.type == "cpu" else _GPU
