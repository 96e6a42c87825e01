"""Distances between rows of features: known values, torch-fidelity's, and honest errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from torch import Tensor

from genkit.evaluation import estimators
from genkit.evaluation.estimators import (
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
)

Pair = tuple[Tensor, Tensor]


def rows(seed: int, count: int = 300, width: int = 40, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).relu() * scale


@pytest.fixture
def pair() -> Pair:
    return rows(0), rows(1, scale=1.2) + 0.05


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows, the last of them shorter."""
    monkeypatch.setattr(estimators, "_BLOCK", 64)


def moments(x: Tensor) -> Pair:
    return x.mean(0), torch.cov(x.T)


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Covariances that commute, and two of two dimensions that do not."""
    turn = torch.linalg.qr(rows(0, 9, 9) - 0.4).Q
    a, b = (torch.linspace(low, high, 9, dtype=torch.float64) for low, high in ((0, 2), (1, 5)))
    mean, mean2 = torch.zeros(9).double(), torch.full((9,), 0.5).double()
    known = 9 * 0.25 + float((a.sqrt() - b.sqrt()).square().sum())
    turned = (turn * a) @ turn.T, (turn * b) @ turn.T
    assert frechet(mean, turned[0], mean2, turned[1]) == pytest.approx(known, rel=1e-7)
    a, b = torch.tensor([[2.0, 0.5], [0.5, 1]]).double(), torch.tensor([[1, -0.3], [-0.3, 4]])
    b = b.double()
    root = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    known = float(a.trace() + b.trace() - 2 * root)
    assert frechet(mean[:2], a, mean[:2], b) == pytest.approx(known, rel=1e-9)
    assert frechet(mean[:2], a, mean[:2], a) == pytest.approx(0, abs=1e-12)


def test_a_singular_covariance_has_no_noise() -> None:
    """The square root of an eigenvalue that should be 0 would be 1e-8 of the largest."""
    few = rows(0, 20, 200) * 100
    mean, covariance = moments(few)
    assert abs(frechet(mean, covariance, mean, covariance)) < 1e-9 * float(covariance.trace())


@pytest.mark.usefixtures("small_blocks")
def test_the_figures_are_torch_fidelitys(pair: Pair) -> None:
    """On the same features in float64."""
    need("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    real, made = pair
    theirs = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(each) for each in pair), False
    )["frechet_inception_distance"]
    assert frechet(*moments(real), *moments(made)) == pytest.approx(theirs, rel=1e-6)
    size = {"kid_subsets": 1, "kid_subset_size": len(real), "verbose": False}
    kid = metric_kid.kid_features_to_metric(made, real, **size)["kernel_inception_distance_mean"]
    assert kernel_distance(real, made)[0] == pytest.approx(kid, rel=1e-6)
    theirs = metric_prc.prc_features_to_metric(made, real, verbose=False)
    found = precision_recall(real, made)
    assert 0.2 < min(found) < max(found) < 1
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)
    for splits in (1, 7):
        score = metric_isc.isc_features_to_metric(real, splits, shuffle=False)
        assert inception_score(real, splits) == pytest.approx(
            score["inception_score_mean"], rel=1e-6
        )


@pytest.mark.usefixtures("small_blocks")
def test_the_distance_of_pairs_is_the_u_statistic(pair: Pair) -> None:
    need("torch_fidelity")
    from torch_fidelity.metric_kid import kernel_poly, mmd2

    x, y = (each.numpy() for each in pair)
    kernels = [kernel_poly(a, b) for a, b in ((x, x), (x, y), (y, y))]
    theirs = mmd2(*kernels, mmd_est="u-statistic")
    assert kernel_distance(*pair, paired=True)[0] == pytest.approx(theirs, rel=1e-6)


def related(seed: int, count: int, paired: bool) -> Pair:
    """Two sets from one distribution; if `paired`, each row of one is like its row of the other."""
    first, second = rows(2 * seed, count, 8), rows(2 * seed + 1, count, 8)
    if not paired:
        return first, second
    swapped = torch.rand(count, 8, generator=torch.Generator().manual_seed(seed)) < 0.8
    return first, torch.where(swapped, first, second)


@pytest.mark.parametrize("paired", [False, True])
def test_the_kernel_distance_of_equal_distributions_is_0_on_average(paired: bool) -> None:
    found = np.array([kernel_distance(*related(seed, 40, paired), paired) for seed in range(300)])
    spread = found[:, 0].std()
    assert abs(found[:, 0].mean()) < 4 * spread / 300**0.5
    # The jackknife's error is too large where the truth is 0, by a factor of 1.4.
    assert 0.9 < (found[:, 1] ** 2).mean() ** 0.5 / spread < 1.9
    if paired:
        # Products within pairs would lower the estimate far below 0.
        biased = [kernel_distance(*related(seed, 40, True))[0] for seed in range(100)]
        assert np.mean(biased) < -5 * spread / 300**0.5


@pytest.mark.parametrize("paired", [False, True])
def test_the_error_is_the_spread_of_the_estimates(paired: bool) -> None:
    def moved(seed: int) -> Pair:
        first, second = related(seed, 60, paired)
        return first, second * 1.3 + 0.2

    found = np.array([kernel_distance(*moved(seed), paired) for seed in range(300)])
    assert (found[:, 1] ** 2).mean() ** 0.5 == pytest.approx(found[:, 0].std(), rel=0.25)


def test_precision_and_recall_of_points_on_a_line() -> None:
    def points(*places: float) -> Tensor:
        return torch.tensor(places)[:, None]

    real, made = points(0, 1, 2, 10), points(0.5, 4.5, 5.5, 100)
    # Radii of the real ones: 1, 1, 1, 8; of the made ones: 4, 1, 1, 94.5.
    assert precision_recall(real, made, 1) == (0.75, 1.0)
    assert precision_recall(points(0, 1), points(5, 6), 1) == (0.0, 0.0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("measure", [kernel_distance, precision_recall])
def test_blocks_change_nothing(measure: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks = measure(*pair)
    monkeypatch.setattr(estimators, "_BLOCK", 10**6)
    assert measure(*pair) == pytest.approx(in_blocks, rel=1e-12)
    assert measure(*(each.float() for each in pair)) == pytest.approx(in_blocks, rel=1e-4)
