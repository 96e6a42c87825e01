"""Distances between two sets of images, from one row of features per image. In float64.

`docs/distances.md` says how each is computed and when it can be believed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that are compared at a time. A block of distances takes 32 MB.
_BLOCK = 2048


def frechet(mean: Tensor, covariance: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The squared Fréchet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    The trace of the root of the product of covariances is the sum of the singular values of the
    product of their roots. Unlike the roots of the product's eigenvalues, these keep their digits
    where the covariances have few directions.
    """
    trace = torch.linalg.svdvals(_root(covariance).T @ _root(covariance2)).sum()
    spread = covariance.trace() + covariance2.trace() - 2 * trace
    return float((mean - mean2).square().sum() + spread)


def _root(covariance: Tensor) -> Tensor:
    """A matrix R with R Rᵀ equal to the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def kernel_distance(
    real: Tensor, made: Tensor, paired: bool = False, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401) of all rows `[N, d]`, and its standard error.

    It is the unbiased estimate of the squared maximum mean discrepancy with the kernel
    (x·y/d + 1)³, which is 0 on average for equal distributions and can be negative. If the rows
    are `paired`, such as reconstructions with their images, products within a pair are left out:
    its two images are not independent, so they would lower the estimate. The error comes from the
    jackknife, which leaves out one image, or one pair, at a time.
    """
    n, m = len(real), len(made)
    within_real = torch.stack(_kernel_sums(real, real, device)).sum(0)
    within_made = torch.stack(_kernel_sums(made, made, device)).sum(0)
    of_real, of_made = _kernel_sums(real, made, device)
    if paired:
        pairs = torch.cat([_kernel((a * b).sum(1), a) for a, b in _both(real, made, device)])
        across = of_real + of_made - 2 * pairs
        each = within_real + within_made - across
        total = each.sum()
        estimate = total / (n * (n - 1))
        without = (total - 2 * each) / ((n - 1) * (n - 2))
        return float(estimate), float(_jackknife(without).sqrt())
    real_sum, made_sum, across_sum = within_real.sum(), within_made.sum(), of_real.sum()
    real_mean, made_mean = real_sum / (n * (n - 1)), made_sum / (m * (m - 1))
    without_real = (real_sum - 2 * within_real) / ((n - 1) * (n - 2)) + made_mean
    without_real -= 2 * (across_sum - of_real) / ((n - 1) * m)
    without_made = (made_sum - 2 * within_made) / ((m - 1) * (m - 2)) + real_mean
    without_made -= 2 * (across_sum - of_made) / (n * (m - 1))
    variance = _jackknife(without_real) + _jackknife(without_made)
    return float(real_mean + made_mean - 2 * across_sum / (n * m)), float(variance.sqrt())


def _jackknife(without: Tensor) -> Tensor:
    """The variance of an estimate, from its values without each of the images."""
    return (without - without.mean()).square().mean() * (len(without) - 1)


def _kernel(products: Tensor, rows: Tensor) -> Tensor:
    kernel = products / rows.shape[1] + 1
    return kernel * kernel * kernel


def _kernel_sums(x: Tensor, y: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The sums of the kernel over the rows of `y`, for each of `x`, and the other way round.

    Between equal tensors the sums are over half of the pairs of different rows each.
    """
    sums = [torch.zeros(len(rows), dtype=torch.float64, device=device) for rows in (x, y)]
    for start, a in _blocks(x, device):
        for start2, b in _blocks(y, device, start if x is y else 0):
            kernel = _kernel(a @ b.T, a)
            if x is y and start == start2:
                kernel.triu_(1)
            sums[0][start : start + len(a)] += kernel.sum(1)
            sums[1][start2 : start2 + len(b)] += kernel.sum(0)
    return sums[0], sums[1]


def precision_recall(
    real: Tensor, made: Tensor, neighbours: int = 3, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Precision is the share of the made rows `[N, d]` within the balls around the real ones, whose
    radius is the distance to the k-th nearest other real one. Recall is the reverse.
    """
    return (
        _share_within(made, real, _radii(real, neighbours, device), device),
        _share_within(real, made, _radii(made, neighbours, device), device),
    )


def _radii(rows: Tensor, neighbours: int, device: torch.device | str) -> Tensor:
    """The squared distance `[N]` of every row to its k-th nearest other row."""
    radii = []
    for start, a in _blocks(rows, device):
        nearest = a.new_full((len(a), neighbours), torch.inf)
        for start2, b in _blocks(rows, device):
            squares = _squares(a, b)
            if start == start2:
                squares.fill_diagonal_(torch.inf)
            every = torch.cat([nearest, squares], 1)
            nearest = every.topk(neighbours, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _share_within(x: Tensor, y: Tensor, radii: Tensor, device: torch.device | str) -> float:
    """The share of the rows of `x` that lie in a ball around a row of `y`."""
    inside = 0
    for _, a in _blocks(x, device):
        found = torch.zeros(len(a), dtype=torch.bool, device=device)
        for start, b in _blocks(y, device):
            found |= (_squares(a, b) <= radii[start : start + len(b)]).any(1)
        inside += int(found.sum())
    return inside / len(x)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """The squared distances `[N, M]` between the rows of two blocks."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp_(min=0)


def inception_score(logits: Tensor, splits: int = 1) -> float:
    """The Inception score (Salimans et al. 2016, arXiv 1606.03498) of logits `[N, classes]`.

    It is the exponential of the information that an image has about its class, averaged over
    `splits` equal parts of the rows.
    """
    scores = []
    for start, end in _parts(len(logits), splits):
        log_p = logits[start:end].double().log_softmax(1)
        p = log_p.exp()
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def _parts(count: int, parts: int) -> Iterator[tuple[int, int]]:
    for part in range(parts):
        yield part * count // parts, (part + 1) * count // parts


def _blocks(
    rows: Tensor, device: torch.device | str, start: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows in float64 on the device, each with the place of its first row."""
    for place in range(start, len(rows), _BLOCK):
        yield place, rows[place : place + _BLOCK].to(device).double()


def _both(x: Tensor, y: Tensor, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    for (_, a), (_, b) in zip(_blocks(x, device), _blocks(y, device), strict=True):
        yield a, b
