"""Nearest-code search: exact indices at the price of one low-precision matrix product.

The distances of N latents to K codes are one product of two matrices, but rounding can swap codes
that are almost equally near. So the product here computes an *upper bound* of how near each code
is: the rounded product plus everything that rounding can have cost. A code whose upper bound lies
below the *lower bound* of the best code cannot be the nearest. On usual data that leaves one
candidate per latent; where it leaves several, their distances are computed from differences.

`_Search` derives the bounds, `_candidates` picks the codes above the line, `settle` compares them
exactly, and `_at_once` is the shortcut for small inputs. The number of candidates depends on the
data, and a host that asks a GPU for it waits. So on GPUs `_first` compares a fixed number of each
latent's best codes, and knows whether that was enough. A plain search in float64 is the reference
in the tests.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from genkit.ops.later import believed
from genkit.ops.precision import exact_products, finest
from genkit.ops.settle import HALF_ULP, cores, settle

# Sizes that fit a core's cache: scores of a tile, and values of the latents of a chunk.
_TILE, _CHUNK = 2**21, 2**18
# Candidates that are compared exactly in one go.
_PAIRS = 2**18
# Multiplications below which the operations around them dominate, in float32 and bfloat16.
_FEW, _FEW_BF16 = 2**27, 2**26
# Differences in float64 below which computing all of them is fastest.
_DENSE = 2**18
# Codes per block: only the best score of a block is compared at first.
_BLOCK = 64
# Candidates per latent beyond which the bounds are too loose.
_MANY = 8
# Candidates per latent that a GPU compares without asking how many there are, and values of them
# that it compares at a time.
_FIRST, _FIRST_SLICE = 8, 2**23
# Errors of lengths, and of products, where squares underflow in float32.
_TINY, _TINY_SQUARE = 1e-17, 1e-30
# Distance between upper and lower bound in units of the error, with columns rounded up.
_SPAN = 2.06
_HALF_ULP_BF16 = 2.0**-8
# Older versions of PyTorch report AMX tiles alone; every CPU with tiles multiplies bfloat16.
_HAS_UNITS: bool = (
    bool(torch.cpu.get_capabilities().get("amx_bf16"))
    if hasattr(torch.cpu, "get_capabilities")
    else torch.cpu._is_amx_tile_supported()
)


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices int64 `[N]` of the codes `[K, d]` nearest to latents `[N, d]`.

    The result equals an exhaustive search of the Euclidean distances in double precision; among
    equally near codes the lowest index wins. A latent that is not finite, or longer than 1e12 times
    the codes, gets any index. Beside the inputs, memory is O(K d) and a constant; the N x K
    distances never exist at once. On Apple's GPUs, which have no float64, the result is exact to
    float32.

    A matrix product, in bfloat16 where the CPU has units for it, gives upper bounds. The codes that
    the bounds leave are compared by differences, in float32 first and in float64 where float32
    cannot decide. A compiled graph holds the search as one operation, and an exported one uses the
    float32 product alone.
    """
    if torch.compiler.is_exporting():
        squares = codebook.float().square().sum(1)
        return torch.addmm(squares, latents.float(), codebook.float().t(), alpha=-2).argmin(1)
    if torch.compiler.is_compiling():
        return _operation(latents.detach(), codebook.detach())
    return _searched(latents, codebook)


@torch.library.custom_op("genkit::nearest_codes", mutates_args=())
def _operation(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search as one operation, which a compiler does not look into."""
    return _searched(latents, codebook)


@_operation.register_fake
def _(latents: Tensor, codebook: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


def _searched(latents: Tensor, codebook: Tensor) -> Tensor:
    if latents.is_meta or not latents.numel() or not len(codebook):
        return latents.new_zeros(len(latents), dtype=torch.int64)
    codebook = _at_least_float32(codebook)
    scores = len(latents) * len(codebook)
    few = _FEW_BF16 if _unit(latents.device) == torch.bfloat16 else _FEW
    if _must_wait(latents.device):
        return believed(*_first(latents, codebook), lambda: _by_bounds(latents, codebook))
    if scores <= _TILE and scores * codebook.shape[1] <= few:
        return _at_once(_at_least_float32(latents), codebook)
    return _by_bounds(latents, codebook)


def count_codes(indices: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs among indices `[N]`, int64 `[size]`."""
    if indices.is_cpu:
        return torch.bincount(indices, minlength=size)
    # `bincount` waits for a GPU.
    return indices.new_zeros(size).index_add_(0, indices, indices.new_ones(()).expand_as(indices))


def _must_wait(device: torch.device) -> bool:
    """Whether the host must wait for an answer of the device."""
    return device.type != "cpu"


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _at_once(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search for few latents and few codes, where every operation counts.

    The scores x e - |e|^2 / 2 are computed in float32 and trusted where the second best is behind
    by more than rounding can explain.
    """
    norm = torch.linalg.vector_norm(codebook, dim=1).float()
    factor = torch.cat([latents.float(), latents.new_ones(len(latents), 1).float()], 1)
    codes = torch.cat([codebook.float(), norm.square().mul_(-0.5)[:, None]], 1)
    scores = codes.new_empty(len(codes), len(factor))
    with exact_products(latents.device):
        torch.mm(codes, factor.t(), out=scores)  # Autocast ignores operations with `out`.
    best, indices = _maxima(scores)
    second = scores.scatter_(0, indices, -torch.inf).amax(0)
    # The error of a sum of n terms is n half ulps of their absolute sum; 1e-35 covers underflow.
    longest = float(norm.amax())
    share = 4 * (codebook.shape[1] + 8) * HALF_ULP * longest
    slack = torch.linalg.vector_norm(factor, dim=1).mul_(share).add_(share * longest + 1e-35)
    least = best[0] - slack
    # Negated, so that NaN counts as doubtful.
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

    Max pooling over pixels of n channels is the one operation that finds a maximum and its place as
    fast as the maximum alone.
    """
    pixels = scores.view(1, len(scores), 1, -1).permute(0, 3, 1, 2)
    values, places = F.max_pool2d(pixels, (len(scores), 1), return_indices=True)
    return values.view(1, -1), places.view(1, -1)


def _first(latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The search without waiting: indices, and whether one of them may be wrong."""
    search = _Search(codebook, _unit(latents.device))
    parts = latents.split(max(1, min(search.rows, _FIRST_SLICE // (_FIRST * latents.shape[1]))))
    found, doubts = zip(*[search.first(_at_least_float32(part)) for part in parts], strict=True)
    return torch.cat(found), torch.stack([search.out_of_range(), *doubts]).any()


def _by_bounds(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search by bounds of how near codes are, chunk by chunk and tile by tile."""
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    search = _Search(codebook, _unit(latents.device))
    if search.out_of_range():
        if finest(latents.device) != torch.float64:
            return _by_bounds(latents.cpu(), codebook.cpu()).to(latents.device)
        # Squares would leave the range of float32. Scaling by a power of two changes no digit.
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
            # The bounds are too loose for these codes: use float32, and each distinct code once.
            kept = _distinct(codebook)
            finer = _Search(codebook[kept], torch.float32)
        if finer is not None:
            finer.find(part, into.zero_(), math.inf)
            into.copy_(kept[into])
    return indices


def _distinct(codebook: Tensor) -> Tensor:
    """The indices of the distinct codes, each at its first place, in order."""
    _, which, counts = torch.unique(codebook, dim=0, return_inverse=True, return_counts=True)
    places = which.sort(stable=True).indices
    return places[counts.cumsum(0) - counts].sort().values


class _Search:
    """Codes `[K, d]` prepared for the search of many latents.

    Let x be a latent and e a code, both relative to a point in the middle of the codes. The
    nearness is x e - |e|^2 / 2 plus a constant per latent. With x' and e' rounded to the unit's
    dtype, and r_x and r_e the rounding errors, x e differs from x' e' by at most
    |x| |r_e| + |r_x| |e|. Each of these terms is one more column of the two factors; the other
    terms, split into a high and a low part, are two columns each. The product of the factors is
    then an upper bound.

    The constant puts one code, the one nearest to the middle, at 0. So the bound of a latent's
    nearest code is never negative, and non-negative bfloat16 numbers compare like 16-bit integers,
    which CPUs do much faster.
    """

    def __init__(self, codebook: Tensor, unit: torch.dtype) -> None:
        count, dim = codebook.shape
        device, fine = codebook.device, unit == torch.float32
        self.codebook, self.unit, self.fine = codebook, unit, fine
        # The units take 32 columns at a time.
        self.width = dim + 6 if fine else -(-(dim + 6) // 32) * 32
        # The error of a sum of n products in any order is n half ulps of their absolute sum; twice
        # that covers the differences and squares, and twice again is a margin. The units of GPUs
        # cut each term and each sum off instead of rounding them, which can cost 3 n half ulps.
        cut = not fine and device.type != "cpu"
        own = (8 if cut else 4) * (self.width + 8) * HALF_ULP
        # A number split into two parts has an error of half an ulp of half an ulp.
        rest = own if fine else own + 4 * _HALF_ULP_BF16**2
        # Three values are rounded: a bound, the line it is compared with, and the best bound.
        self.rounding = 0.0 if fine else 3 * _HALF_ULP_BF16

        # The median of some codes, which a few outliers do not move. Sorted, because `median` is
        # refused on GPUs where a program asks for deterministic operations.
        some = codebook[:: -(-count // 64)].sort(0).values
        self.centre = some[(len(some) - 1) // 2]
        # Latents, or codes, per chunk.
        self.together = max(128, _CHUNK * cores(device) // max(64, dim))
        norms = [
            torch.linalg.vector_norm(self._moved(codes), dim=1)
            for codes in codebook.split(self.together)
        ]
        # Sorted by length, so that a block holds codes of similar length and outliers spoil one.
        norm, self.order = torch.cat(norms).add_(_TINY).sort()
        self.largest = norm[-1]
        self.middle = self._moved(codebook.index_select(0, self.order[:1]))
        half = norm.square().mul_(0.5)
        slack = half * rest + _TINY_SQUARE
        top = slack - half
        # For the code in the middle: |e|^2 / 2, and its error, as a slope over |x| and a constant.
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
        # Coefficients of |x| and |r_x|, and a constant: the upper minus the lower bound.
        spans = F.pad(torch.stack([lost, norm, slack]).mul_(_SPAN), (0, len(factor) - count))
        self.spans = spans.view(3, self.blocks, _BLOCK).amax(2)

        # Latents in a tile.
        self.rows = max(128, min(_TILE * cores(device) // len(factor), self.together))
        self.scores = factor.new_empty(0)

    def out_of_range(self) -> Tensor:
        """Whether squares of the codes would leave the range of float32."""
        return self.largest.clamp(2.0**-20, 2.0**20) != self.largest

    def _moved(self, vectors: Tensor) -> Tensor:
        return (vectors - self.centre).float()

    def _ready(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The factor `[n, width]` of latents `[n, d]`, and the terms that scale their spans."""
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

        Returns False, having given up, if more than `many` candidates per latent are left.
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
                settle(tokens, self.order[codes], latents, self.codebook, indices)
                found.clear()
        return True

    def first(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the codes nearest to latents `[n, d]`, and whether one may be wrong.

        That is so where a latent has more candidates than are compared.
        """
        keys, _, least = self._scored(*self._ready(latents))
        best = keys.flatten(1).topk(min(_FIRST, len(self.codebook)), 1)
        inside = best.values > least[:, None]
        last = len(self.order) - 1
        # Padding can be among the best of a latent that is not finite.
        codes = self.order.index_select(0, best.indices.flatten().clamp_(max=last))
        dtype = finest(latents.device)
        others = self.codebook.index_select(0, codes).to(dtype).view(*inside.shape, -1)
        distances = others.sub_(latents[:, None]).square_().sum(2)
        distances = torch.where(inside, distances, math.inf)
        near = distances <= distances.amin(1, keepdim=True)
        # The lowest index among equally near codes.
        codes = torch.where(near, codes.view_as(near), last).amin(1)
        several = inside[:, -1] if len(self.codebook) > _FIRST else inside[:, -1] & False
        return codes, several.any()

    def _scored(self, factor: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds of a tile as comparable keys `[n, blocks, codes]`, and the best per block.

        Third is the line per latent above which the keys of its candidates lie.
        """
        rows, blocks = len(factor), self.blocks
        if self.scores.numel() < rows * blocks * _BLOCK:
            self.scores = factor.new_empty(rows * blocks * _BLOCK)
        scores = self.scores[: rows * blocks * _BLOCK].view(rows, blocks * _BLOCK)
        # CPUs sum products of bfloat16 in float32 whatever the settings.
        with exact_products(factor.device) if self.fine or not factor.is_cpu else nullcontext():
            torch.mm(factor, self.factor, out=scores)
        keys = (scores if self.fine else scores.view(torch.int16)).view(rows, blocks, _BLOCK)
        best = keys.amax(2)
        most, block = best.max(1)
        of_norm, of_lost, span = self.spans.index_select(1, block)
        least = most.view(self.unit).float().mul_(1 - self.rounding)
        norm, lost, own = bounds.unbind(1)
        least.sub_(span).sub_(own)
        least.addcmul_(of_norm, norm, value=-1).addcmul_(of_lost, lost, value=-1)
        # A latent with NaN or infinity has no candidates. Their difference with themselves is NaN.
        wild = least.sub(least) != 0
        if self.fine:
            return keys, best, least.masked_fill_(wild, math.inf)
        least = least.clamp_(min=0).to(self.unit).view(torch.int16) - 1
        return keys, best, least.masked_fill_(wild, 2**15 - 1)


def _candidates(keys: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a latent and a code whose key lies above the latent's line, in order.

    Takes keys `[n, blocks, codes]`, their maxima `[n, blocks]`, and lines `[n]`.
    """
    tokens, block = (best > least[:, None]).nonzero().unbind(1)
    members = keys.view(-1, _BLOCK).index_select(0, tokens * best.shape[1] + block)
    if keys.dtype == torch.int16:
        # Differences could overflow. No line lies below -1, so clamping loses nothing.
        members.clamp_(min=-1)
    below = torch.sub(least.index_select(0, tokens)[:, None], members).clamp_(max=0)
    # Compare 64-bit words, nearly all of which are zero.
    several = 8 // keys.element_size()
    pair, word = below.view(torch.int64).nonzero().unbind(1)
    which, code = (
        below.view(len(members), _BLOCK // several, several)[pair, word].nonzero().unbind(1)
    )
    pair = pair[which]
    return tokens[pair], block[pair] * _BLOCK + word[which] * several + code


def _unit(device: torch.device) -> torch.dtype:
    """The dtype of the factors: bfloat16 where the device has units for its products."""
    if device.type == "cuda":
        # AMD's GPUs, which torch calls cuda too, count their capabilities otherwise.
        nvidia = torch.version.hip is None
        units = nvidia and torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        units = device.type == "cpu" and _HAS_UNITS
    return torch.bfloat16 if units else torch.float32
