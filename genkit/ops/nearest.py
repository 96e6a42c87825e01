"""Nearest-code search."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Scores in a tile, for each thread: as many as a core's cache holds.
_TILE = 2**21
# Multiplications up to which what is done beside them counts most.
_FEW = 2**26
# On a GPU, which only large tiles keep busy.
_GPU_TILE = 2**26
_CHUNK = 2048
# Codes of whose scores only the best is looked at first.
_BLOCK = 64
# Candidates that are looked at again together, and of these at a time.
_PAIRS, _SLICE = 2**18, 2**13
# Candidates for a latent that are too many.
_MANY = 8
_HALF_ULP = 2.0**-24
_LOCK = threading.Lock()


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices int64 `[N]` of the codes `[K, d]` nearest to latents `[N, d]`.

    They are those of an exhaustive search of the Euclidean distances in double precision; of codes
    equally near the lowest index is taken. A latent that is not finite, or longer than 1e18 times
    the codes, gets any index. Beside the inputs, memory is O(K d) and a constant; the N x K
    distances never exist at once. Apple's GPUs, which have no float64, are exact to float32.

    A matrix product, in bfloat16 where the processor has units for it and the program one thread,
    bounds every distance from below. Codes whose bound lies above the distance to one code are out;
    of what is left, the distances are taken from differences, in float32 and, as far as these
    cannot tell, in float64. An exported graph takes the product in float32 alone.
    """
    if torch.compiler.is_exporting():
        squares = codebook.float().square().sum(1)
        return torch.addmm(squares, latents.float(), codebook.float().t(), alpha=-2).argmin(1)
    if latents.is_meta or not latents.numel() or not len(codebook):
        return latents.new_zeros(len(latents), dtype=torch.int64)
    codebook = _at_least_float32(codebook)
    scores = len(latents) * len(codebook)
    if latents.device.type == "cpu" and scores <= _TILE and scores * codebook.shape[1] <= _FEW:
        return _at_once(_at_least_float32(latents), codebook)
    return _by_bounds(latents, codebook)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _at_once(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search where few latents meet few codes, and each operation counts.

    The scores x e - |e|^2 / 2 are taken in float32 and trusted where the second best is behind by
    more than rounding can do.
    """
    norm = torch.linalg.vector_norm(codebook, dim=1).float()
    factor = torch.cat([latents.float(), latents.new_ones(len(latents), 1).float()], 1)
    codes = torch.cat([codebook.float(), norm.square().mul_(-0.5)[:, None]], 1)
    with _precision(latents.device, torch.float32):
        scores = codes @ factor.t()
    best, indices = _maxima(scores)
    second = scores.scatter_(0, indices, -torch.inf).amax(0)
    # A sum of n terms is off by n half ulps of their absolute sum; and no number is below 2^-126.
    longest = float(norm.amax())
    share = 4 * (codebook.shape[1] + 8) * _HALF_ULP * longest
    slack = torch.linalg.vector_norm(factor, dim=1).mul_(share).add_(share * longest + 1e-35)
    least = best[0] - slack
    # So asked that what is no number is in doubt.
    doubtful = (second < least).logical_not_().nonzero().squeeze(1)
    found = indices[0]
    if len(doubtful) > len(latents) // 8:
        found[doubtful] = _by_bounds(latents[doubtful], codebook)
    elif len(doubtful):
        scores.scatter_(0, indices, best)
        near = scores[:, doubtful] >= least[doubtful]
        token, code = near.t().nonzero().unbind(1)
        _settle(doubtful[token], code, latents, codebook, found)
    return found


def _maxima(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum `[1, n]` of each column of scores `[K, n]`, and its row.

    As a pooling of pixels, n channels each, for this is the one operation that finds a maximum and
    its place at the speed of finding the maximum alone.
    """
    pixels = scores.view(1, len(scores), 1, -1).permute(0, 3, 1, 2)
    values, places = F.max_pool2d(pixels, (len(scores), 1), return_indices=True)
    return values.view(1, -1), places.view(1, -1)


def _by_bounds(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search by lower bounds of the distances, chunk by chunk and tile by tile."""
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    search = _Search(codebook, _unit(latents.device.type))
    if not 2.0**-40 < search.largest < 2.0**40:
        # Squares would leave the range of float32. A power of two changes no digit.
        codebook = codebook.double()
        largest = float((codebook - codebook.mean(0)).abs().amax())
        if not 0 < largest < math.inf:
            return indices
        scale = 2.0 ** -math.floor(math.log2(largest))
        return _by_bounds(latents.double() * scale, codebook * scale)
    kept: Tensor | None = None
    chunk = -(-_CHUNK // search.rows) * search.rows
    for part, into in zip(latents.split(chunk), indices.split(chunk), strict=True):
        part = _at_least_float32(part)
        if kept is None and not search.find(part, into):
            # Bounds say little of these codes: finer ones, and no code twice.
            kept = _distinct(codebook)
            search = _Search(codebook[kept], torch.float32)
        if kept is not None:
            search.find(part, into.zero_(), patient=True)
            into.copy_(kept[into])
    return indices


def _distinct(codebook: Tensor) -> Tensor:
    """The indices of all codes but those that equal one of a lower index, in their order."""
    codes, which = torch.unique(codebook, dim=0, return_inverse=True)
    places = torch.arange(len(codebook), device=codebook.device)
    first = places.new_full((len(codes),), len(codebook))
    return first.scatter_reduce_(0, which, places, "amin").sort().values


class _Search:
    """Codes `[K, d]` made ready for looking at many latents.

    With x and e less a point in the middle of the codes, x' and e' rounded, and r their rests, x e
    differs from x' e' by at most |x| |r_e| + |r_x| |e|, and by what the product's own rounding
    makes of |x| |e|. Each of these is one more column of the two factors, and so is |e|^2: their
    product is the lower bound
    of |x - e|^2 - |x|^2.
    """

    def __init__(self, codebook: Tensor, unit: torch.dtype) -> None:
        count, dim = codebook.shape
        device = codebook.device
        # The middle of some of them, which a few that lie far off do not move.
        centre = codebook[:: -(-count // 64)].median(0).values
        self.codebook, self.centre, self.unit = codebook, centre, unit
        # The units take 32 columns at a time.
        self.width = dim + 4 if self.unit == torch.float32 else -(-(dim + 4) // 32) * 32
        # A sum of n products in any order is off by n half ulps of their absolute sum. Then |e|^2
        # in two parts, and twice as much for the squares, the differences and what is forgotten.
        self.gamma = 2 * (2 * (self.width + 4) * _HALF_ULP + 2.0**-17)
        self.blocks = -(-count // _BLOCK)
        codes = torch.zeros(self.blocks * _BLOCK, self.width, device=device)
        norm, rest = self._round((self.centre - codebook).float().mul_(2), codes[:count])
        self.largest = float(norm.amax())
        rest += norm * self.gamma
        square = norm.square().mul_((1 - self.gamma) / 4)
        low = square - square.to(self.unit)
        columns = torch.stack([square, low, norm * 1.02, rest * 1.02], 1).to(self.unit)
        codes[:count, dim : dim + 4] = columns
        codes[count:, dim] = 2.0**126
        self.slack = codes[:, dim + 2 : dim + 4].reshape(self.blocks, _BLOCK, 2).amax(1)
        self.factor = codes.t()

        scores = _TILE * torch.get_num_threads() if device.type == "cpu" else _GPU_TILE
        # Latents in a tile.
        self.rows = max(128, scores // len(codes))
        self.scores = torch.empty(0, device=device)

    def _round(self, vectors: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        """Put the vectors, rounded, into the first columns; the norms of them and of what is left.

        The vectors are spent.
        """
        norm = torch.linalg.vector_norm(vectors, dim=1)
        rounded = into[:, : vectors.shape[1]].copy_(vectors.to(self.unit))
        if self.unit == torch.float32:
            return norm, torch.zeros_like(norm)
        return norm, torch.linalg.vector_norm(vectors.sub_(rounded), dim=1)

    def find(self, latents: Tensor, indices: Tensor, patient: bool = False) -> bool:
        """Write the indices of the codes nearest to latents `[n, d]`.

        Unless it is `patient`, it gives up, and says so by False, where many candidates are left.
        """
        count, dim = latents.shape
        factor = torch.empty(count, self.width, device=latents.device)
        norm, rest = self._round((latents - self.centre).float(), factor)
        factor[:, dim : dim + 2] = 1
        factor[:, dim + 4 :] = 0
        bounds = factor[:, dim + 2 : dim + 4]
        bounds.copy_(torch.stack([rest, norm], 1).mul_(-1.02).to(self.unit))
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, count, self.rows):
            part = slice(start, start + self.rows)
            tokens, codes = self._candidates(factor[part], bounds[part])
            if not patient and len(tokens) > _MANY * len(factor[part]):
                return False
            found.append((tokens + start, codes))
            if sum(len(each) for _, each in found) > _PAIRS or start + self.rows >= count:
                tokens, codes = (torch.cat(each) for each in zip(*found, strict=True))
                _settle(tokens, codes, latents, self.codebook, indices)
                found.clear()
        return True

    def _candidates(self, factor: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a latent and a code that may be its nearest, in order."""
        rows, blocks = len(factor), self.blocks
        if self.scores.numel() < rows * blocks * _BLOCK:
            self.scores = factor.new_empty(rows * blocks * _BLOCK)
        scores = self.scores[: rows * blocks * _BLOCK].view(rows, blocks * _BLOCK)
        with _precision(factor.device, self.unit):
            torch.mm(factor, self.factor, out=scores)
        best = scores.view(rows, blocks, _BLOCK).amin(2)
        least, block = best.min(1)
        # From the lower to the upper bound of the best code's distance.
        most = least - 2.02 * torch.linalg.vecdot(self.slack.index_select(0, block), bounds)
        tokens, block = (best <= most[:, None]).nonzero().unbind(1)
        best = scores.view(-1, _BLOCK).index_select(0, tokens * blocks + block)
        # Eight answers at a time, of which one is rarely yes.
        eights = (best <= most[tokens][:, None]).view(torch.int64)
        pair, eight = eights.nonzero().unbind(1)
        which, code = eights[pair, eight].view(torch.bool).view(-1, 8).nonzero().unbind(1)
        pair = pair[which]
        return tokens[pair], block[pair] * _BLOCK + eight[which] * 8 + code


def _settle(
    tokens: Tensor, codes: Tensor, latents: Tensor, codebook: Tensor, indices: Tensor
) -> None:
    """Write the nearest of each latent's candidates, given in pairs."""
    indices[tokens] = codes
    # Differences are exact but for an ulp, and so is a sum of squares for its number of terms.
    slack = 4 * (latents.shape[1] + 4) * _HALF_ULP
    exact = torch.float32 if latents.device.type == "mps" else torch.float64
    for dtype, share in ((latents.dtype, 1 + slack), (exact, 1.0)):
        several = torch.bincount(tokens, minlength=len(latents))[tokens] > 1
        again = several.nonzero().squeeze(1)
        if not len(again):
            return
        tokens, codes = tokens[again], codes[again]
        slices = zip(tokens.split(_SLICE), codes.split(_SLICE), strict=True)
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
        least = distances.new_full((len(latents),), math.inf)
        least.scatter_reduce_(0, tokens, distances, "amin")
        near = (distances <= least[tokens] * share).nonzero().squeeze(1)
        tokens, codes = tokens[near], codes[near]
        # The lowest of those equally near.
        indices[tokens] = len(codebook)
        indices.scatter_reduce_(0, tokens, codes, "amin")


def _unit(device: str) -> torch.dtype:
    """What to round the factors to: another thread's products would be rounded as well."""
    alone = threading.active_count() == 1
    return torch.bfloat16 if alone and _has_bfloat16(device) else torch.float32


@cache
def _has_bfloat16(device: str) -> bool:
    """Whether products of float32 may be taken on units for bfloat16 and come out as float32."""
    return device == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


@contextmanager
def _precision(device: torch.device, unit: torch.dtype) -> Iterator[None]:
    """Matrix products of float32 take their factors in this precision, whatever was set.

    It is set for the whole program, so that threads wait for one another here.
    """
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    with _LOCK:
        before = backend.matmul.fp32_precision
        backend.matmul.fp32_precision = "bf16" if unit == torch.bfloat16 else "ieee"
        try:
            yield
        finally:
            backend.matmul.fp32_precision = before
