"""Nearest-code search."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

# What a core's cache holds: scores of a tile, numbers of the latents that are looked at together,
# and numbers of candidates that are looked at again.
_TILE, _CHUNK, _SLICE = 2**21, 2**18, 2**16
# A GPU is kept busy by as much as so many cores are.
_GPU = 32
# Candidates that are looked at again together.
_PAIRS = 2**18
# Multiplications up to which what is done beside them counts most, in float32 and bfloat16.
_FEW, _FEW_BF16 = 2**27, 2**26
# Differences of float64 up to which nothing is quicker than to take them all.
_DENSE = 2**18
# Codes of whose scores only the best is looked at first.
_BLOCK = 64
# Candidates for a latent that are too many.
_MANY = 8
# What lengths, and products, are off by where squares leave the range of float32.
_TINY, _TINY_SQUARE = 1e-17, 1e-30
# How many times what it may be off by an upper bound is above a lower one, columns rounded up.
_SPAN = 2.06
_HALF_ULP = 2.0**-24
_HALF_ULP_BF16 = 2.0**-8
# Older versions of torch only report AMX tiles; every processor with tiles multiplies bfloat16.
_HAS_UNITS: bool = (
    bool(torch.cpu.get_capabilities().get("amx_bf16"))
    if hasattr(torch.cpu, "get_capabilities")
    else torch.cpu._is_amx_tile_supported()
)
_LOCK = threading.Lock()


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices int64 `[N]` of the codes `[K, d]` nearest to latents `[N, d]`.

    They are those of an exhaustive search of the Euclidean distances in double precision; of codes
    equally near the lowest index is taken. A latent that is not finite, or longer than 1e12 times
    the codes, gets any index. Beside the inputs, memory is O(K d) and a constant; the N x K
    distances never exist at once. Apple's GPUs, which have no float64, are exact to float32.

    A matrix product, in bfloat16 where the processor has units for it, bounds from above how near
    each code is. Codes whose bound lies below the nearness of one code are out; of what is left,
    the distances are taken from differences, in float32 and, as far as these cannot tell, in
    float64. An exported graph takes the product in float32 alone.
    """
    if torch.compiler.is_exporting():
        squares = codebook.float().square().sum(1)
        return torch.addmm(squares, latents.float(), codebook.float().t(), alpha=-2).argmin(1)
    if latents.is_meta or not latents.numel() or not len(codebook):
        return latents.new_zeros(len(latents), dtype=torch.int64)
    codebook = _at_least_float32(codebook)
    scores = len(latents) * len(codebook)
    few = _FEW_BF16 if _unit(latents.device.type) == torch.bfloat16 else _FEW
    small = scores <= _TILE and scores * codebook.shape[1] <= few
    if latents.device.type == "cpu" and small:
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
    scores = codes.new_empty(len(codes), len(factor))
    with _precision(latents.device):
        torch.mm(codes, factor.t(), out=scores)  # Autocast leaves alone what is given its result.
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
    if len(doubtful) * codebook.numel() > _DENSE:
        found[doubtful] = _by_bounds(latents[doubtful], codebook)
    elif len(doubtful):
        differences = latents[doubtful, None].double() - codebook.double()
        found[doubtful] = differences.square_().sum(2).argmin(1)
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
    """The search by bounds of how near codes are, chunk by chunk and tile by tile."""
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    search = _Search(codebook, _unit(latents.device.type))
    if not 2.0**-20 < search.largest < 2.0**20:
        # Squares would leave the range of float32. A power of two changes no digit.
        codebook = codebook.double()
        largest = float((codebook - codebook.mean(0)).abs().amax())
        if not 0 < largest < math.inf:
            return indices
        scale = 2.0 ** -max(-1000, math.floor(math.log2(largest)))
        return _by_bounds(latents.double() * scale, codebook * scale)
    finer: _Search | None = None
    chunk = -(-search.together // search.rows) * search.rows
    for part, into in zip(latents.split(chunk), indices.split(chunk), strict=True):
        part = _at_least_float32(part)
        if finer is None and not search.find(part, into, _MANY):
            # Bounds say little of these codes: finer ones, and no code twice.
            kept = _distinct(codebook)
            finer = _Search(codebook[kept], torch.float32)
        if finer is not None:
            finer.find(part, into.zero_(), math.inf)
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

    With x and e taken from a point in the middle of the codes, how near they are is x e, less
    |e|^2 / 2, and a constant for each latent. With x' and e' rounded to the unit, and r their
    rests, x e is off from x' e' by at most |x| |r_e| + |r_x| |e|. Each of these is one more column
    of the two factors, and the others are two each: the product is an upper bound.

    The constant is such that one code, the one nearest to the middle, is at 0. So no latent's
    nearest code has a negative bound, and bounds in bfloat16 compare as whole numbers of 16 bits
    do, which processors are much faster at.
    """

    def __init__(self, codebook: Tensor, unit: torch.dtype) -> None:
        count, dim = codebook.shape
        device, fine = codebook.device, unit == torch.float32
        self.codebook, self.unit, self.fine = codebook, unit, fine
        # The units take 32 columns at a time.
        self.width = dim + 6 if fine else -(-(dim + 6) // 32) * 32
        # A sum of n products in any order is off by n half ulps of their absolute sum, the same
        # again for the differences and squares, and that twice.
        own = 4 * (self.width + 8) * _HALF_ULP
        # A number in two parts is off by half an ulp of half an ulp.
        rest = own if fine else own + 4 * _HALF_ULP_BF16**2
        # A bound and the line that it is held against are rounded, and the bound of the best is.
        self.rounding = 0.0 if fine else 3 * _HALF_ULP_BF16

        # The middle of some of them, which a few that lie far off do not move.
        self.centre = codebook[:: -(-count // 64)].median(0).values
        # Latents, or codes, that are looked at together.
        self.together = max(128, _CHUNK * _cores(device) // max(64, dim))
        norms = [
            torch.linalg.vector_norm(self._moved(codes), dim=1)
            for codes in codebook.split(self.together)
        ]
        # By length, so that one block's are about as long and a few long ones spoil only one.
        norm, self.order = torch.cat(norms).add_(_TINY).sort()
        self.largest, self.middle = float(norm[-1]), self._moved(codebook[self.order[0]])
        half = norm.square().mul_(0.5)
        slack = half * rest + _TINY_SQUARE
        top = slack - half
        # Of the code in the middle |e|^2 / 2, and what its nearness is off by, a |x| and in all.
        self.half, self.slope, self.slack = half[0], norm[0] * rest, slack[0]
        self.blocks = -(-count // _BLOCK)
        factor = torch.zeros(self.blocks * _BLOCK, self.width, dtype=unit, device=device)
        lost = own * norm + _TINY
        for start in range(0, count, self.together):
            part = slice(start, min(start + self.together, count))
            codes = self._moved(codebook[self.order[part]])
            factor[part, :dim] = codes
            lost[part] += torch.linalg.vector_norm(codes - factor[part, :dim], dim=1)
        columns = [top, top - top.to(unit), lost * 1.02, norm * 1.02]
        factor[:count, dim : dim + 4] = torch.stack(columns, 1)
        factor[:count, dim + 4 : dim + 6] = 1
        factor[count:, dim] = -math.inf
        self.factor = factor.t()
        # From the upper to the lower bound: so much times |x|, times |r_x|, and so much.
        spans = F.pad(torch.stack([lost, norm, slack]).mul_(_SPAN), (0, len(factor) - count))
        self.spans = spans.view(3, self.blocks, _BLOCK).amax(2)

        # Latents in a tile.
        self.rows = max(128, min(_TILE * _cores(device) // len(factor), self.together))
        self.scores = factor.new_empty(0)

    def _moved(self, vectors: Tensor) -> Tensor:
        return (vectors - self.centre).float()

    def _ready(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The factor `[n, width]` of latents `[n, d]`, and what their bounds' spans grow with."""
        count, dim = latents.shape
        moved = self._moved(latents)
        norm = torch.linalg.vector_norm(moved, dim=1).add_(_TINY)
        slack = torch.addcmul(self.slack, norm, self.slope)
        constant = self.half - (moved * self.middle).sum(1) + slack
        factor = self.factor.new_zeros(count, self.width)
        factor[:, :dim] = moved
        factor[:, dim : dim + 2] = 1
        lost = torch.linalg.vector_norm(moved.sub_(factor[:, :dim]), dim=1).add_(_TINY)
        columns = [norm * 1.02, lost * 1.02, constant, constant - constant.to(self.unit)]
        factor[:, dim + 2 : dim + 6] = torch.stack(columns, 1)
        return factor, torch.stack([norm, lost, slack * _SPAN], 1)

    def find(self, latents: Tensor, indices: Tensor, many: float) -> bool:
        """Write the indices of the codes nearest to latents `[n, d]`.

        It gives up, and says so by False, where more than `many` candidates a latent are left.
        """
        count = len(latents)
        factor, bounds = self._ready(latents)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, count, self.rows):
            part = slice(start, start + self.rows)
            tokens, codes = _candidates(*self._scored(factor[part], bounds[part]))
            if len(tokens) > many * len(factor[part]):
                return False
            found.append((tokens + start, codes))
            if sum(len(each) for _, each in found) > _PAIRS or start + self.rows >= count:
                tokens, codes = (torch.cat(each) for each in zip(*found, strict=True))
                _settle(tokens, self.order[codes], latents, self.codebook, indices)
                found.clear()
        return True

    def _scored(self, factor: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a tile the bounds, as keys that compare as they do, `[n, blocks, codes]`.

        Then the best of each block, and for each latent what the keys of its candidates lie above.
        """
        rows, blocks = len(factor), self.blocks
        if self.scores.numel() < rows * blocks * _BLOCK:
            self.scores = factor.new_empty(rows * blocks * _BLOCK)
        scores = self.scores[: rows * blocks * _BLOCK].view(rows, blocks * _BLOCK)
        with _precision(factor.device) if self.fine else nullcontext():
            torch.mm(factor, self.factor, out=scores)
        keys = (scores if self.fine else scores.view(torch.int16)).view(rows, blocks, _BLOCK)
        best = keys.amax(2)
        most, block = best.max(1)
        of_norm, of_lost, span = self.spans.index_select(1, block)
        least = most.view(self.unit).float().mul_(1 - self.rounding)
        norm, lost, own = bounds.unbind(1)
        least.sub_(span).sub_(own)
        least.addcmul_(of_norm, norm, value=-1).addcmul_(of_lost, lost, value=-1)
        # What is no number has no candidates.
        wild = least.isfinite().logical_not_()
        if self.fine:
            return keys, best, least.masked_fill_(wild, math.inf)
        least = least.clamp_(min=0).to(self.unit).view(torch.int16) - 1
        return keys, best, least.masked_fill_(wild, 2**15 - 1)


def _candidates(keys: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a latent and a code whose key lies above the latent's least, in order.

    Of keys `[n, blocks, codes]`, their maxima `[n, blocks]`, and `[n]`.
    """
    tokens, block = (best > least[:, None]).nonzero().unbind(1)
    members = keys.view(-1, _BLOCK).index_select(0, tokens * best.shape[1] + block)
    if keys.dtype == torch.int16:
        # Differences would leave the range. No line lies below -1.
        members.clamp_(min=-1)
    below = torch.sub(least.index_select(0, tokens)[:, None], members).clamp_(max=0)
    # A word of 64 bits at a time, of which one is rarely other than zero.
    several = 8 // keys.element_size()
    pair, word = below.view(torch.int64).nonzero().unbind(1)
    which, code = (
        below.view(len(members), _BLOCK // several, several)[pair, word].nonzero().unbind(1)
    )
    pair = pair[which]
    return tokens[pair], block[pair] * _BLOCK + word[which] * several + code


def _settle(
    tokens: Tensor, codes: Tensor, latents: Tensor, codebook: Tensor, indices: Tensor
) -> None:
    """Write the nearest of each latent's candidates, given in pairs."""
    indices[tokens] = codes
    # Differences are exact but for an ulp, and so is a sum of squares for its number of terms.
    slack = 4 * (latents.shape[1] + 4) * _HALF_ULP
    exact = torch.float32 if latents.device.type == "mps" else torch.float64
    first = torch.promote_types(latents.dtype, codebook.dtype)
    for dtype, share in ((first, 1 + slack), (exact, 1.0)):
        several = torch.bincount(tokens, minlength=len(latents))[tokens] > 1
        again = several.nonzero().squeeze(1)
        if not len(again):
            return
        tokens, codes = tokens[again], codes[again]
        size = max(1, _SLICE * _cores(latents.device) // latents.shape[1])
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
        least = distances.new_full((len(latents),), math.inf)
        least.scatter_reduce_(0, tokens, distances, "amin")
        near = (distances <= least[tokens] * share).nonzero().squeeze(1)
        tokens, codes = tokens[near], codes[near]
        # The lowest of those equally near.
        indices[tokens] = len(codebook)
        indices.scatter_reduce_(0, tokens, codes, "amin")


def _cores(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else _GPU


def _unit(device: str) -> torch.dtype:
    """What to round the factors to: bfloat16 where there are units for its products."""
    return torch.bfloat16 if device == "cpu" and _HAS_UNITS else torch.float32


@contextmanager
def _precision(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 are taken in float32, whatever was set.

    It is set for the whole program, so that threads wait for one another here.
    """
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    with _LOCK:
        before = backend.matmul.fp32_precision
        backend.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.matmul.fp32_precision = before
