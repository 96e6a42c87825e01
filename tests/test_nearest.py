"""Nearest-code search against an exhaustive search in float64."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from nearest_cases import CASES, CODES, DIM, LATENTS, USUAL, beside, randn, spread, twins
from torch import Tensor

from benchmarks.speed.timing import peak_memory
from genkit.ops import nearest, nearest_codes, settle
from genkit.ops.later import doubted, together
from genkit.ops.precision import exact_products


def searched(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices by definition: the first code of least squared distance."""
    codebook = codebook.double()
    return torch.cat(
        [(part[:, None] - codebook).square().sum(2).argmin(1) for part in latents.double().split(9)]
    )


WAYS = ["at once", "bfloat16", "float32", "unasked bfloat16", "unasked float32"]


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every search method on any machine: bfloat16 also works without bf16 units.

    `unasked` is what GPUs do.
    """
    chosen: str = request.param
    monkeypatch.setattr(nearest, "_HAS_UNITS", chosen.endswith("bfloat16"))
    if chosen != "at once":
        monkeypatch.setattr(nearest, "_TILE", 2**14)
    if chosen.startswith("unasked"):
        monkeypatch.setattr(nearest, "_must_wait", lambda device: True)
        monkeypatch.setattr(nearest, "_FIRST_SLICE", 2**14)
    return chosen


@pytest.mark.parametrize("case", CASES)
def test_the_codes_match_a_float64_search(case: str, way: str) -> None:
    torch.manual_seed(1)
    latents, codebook = CASES[case]()
    expected = searched(latents, codebook)
    assert torch.equal(nearest_codes(latents, codebook), expected)
    if way.startswith("unasked"):
        with doubted() as doubts:
            found = nearest_codes(latents, codebook)
        assert ((found >= 0) & (found < len(codebook))).all()
        (doubt,) = doubts
        assert not (doubt and case in USUAL)
        assert doubt or torch.equal(found, expected)


def test_doubts_of_several_searches_are_asked_for_together(way: str) -> None:
    """A doubted answer is searched again, and only then."""
    torch.manual_seed(11)
    sure, alike = spread(), twins()
    times = []

    def work(*pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        times.append(len(pairs))
        return [nearest_codes(*pair) for pair in pairs]

    for pairs, again in (((sure, sure), 1), ((sure, alike), 2)):
        times.clear()
        found = together(lambda pairs=pairs: work(*pairs))
        assert all(torch.equal(f, searched(*pair)) for f, pair in zip(found, pairs, strict=True))
        assert len(times) == (again if way.startswith("unasked") else 1)


@pytest.mark.parametrize(
    "case",
    [
        "spread",
        "beside the middle",
        "far from the origin",
        "codes of 1/K",
        "collapsed",
        "latents of 1e8",
    ],
)
def test_bounds_hold_and_are_tight(case: str) -> None:
    torch.manual_seed(2)
    latents, codebook = CASES[case]()
    search = nearest._Search(codebook, nearest._unit(torch.device("cpu")))
    half_ulp = 2.0**-24 if search.fine else 2.0**-8
    uppers, lowers = [], []
    scored = search._scored

    def watched(factor: Tensor, norm: Tensor) -> tuple[Tensor, ...]:
        keys, best, least = scored(factor, norm)
        uppers.append(keys.view(search.unit).view(len(factor), -1).double())
        # A key above the line by one step is a candidate.
        lowers.append((least if search.fine else (least + 1).view(search.unit)).double())
        return keys, best, least

    search._scored = watched
    assert search.find(latents, torch.zeros(len(latents), dtype=torch.int64), torch.inf)
    moved, codes = (x.double() - search.centre for x in (latents, codebook[search.order]))
    nearness = moved @ codes.t() - codes.square().sum(1) / 2
    nearness = nearness - nearness[:, :1]
    bounds = torch.cat(uppers)[:, : len(codebook)]
    assert (bounds + bounds.abs() * half_ulp >= nearness).all()
    # The bounds are also tight enough to be useful.
    width = moved.norm(dim=1)[:, None] * codes.norm(dim=1)
    width += codes.square().sum(1) / 2
    width += width[:, :1]
    assert (bounds <= nearness + 0.02 * width).all()
    # The candidates' threshold is below the nearest code's score, despite rounding.
    most = nearness.amax(1)
    assert (torch.cat(lowers) <= most - most.abs() * half_ulp).all()


@pytest.mark.parametrize("units", [False, True])
def test_bf16_units_decide_the_search_method(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fast bf16 products the search by bounds pays off at smaller sizes."""
    monkeypatch.undo()
    monkeypatch.setattr(nearest, "_HAS_UNITS", units)
    assert nearest._unit(torch.device("cpu")) == (torch.bfloat16 if units else torch.float32)
    torch.manual_seed(10)
    latents, codebook = randn(2048, 64), randn(1024, 64)
    assert nearest._FEW_BF16 < len(latents) * codebook.numel() <= nearest._FEW
    ways = []
    for name in ("_at_once", "_by_bounds"):
        search = getattr(nearest, name)

        def noted(*given: Tensor, name: str = name, search: Any = search) -> Tensor:
            ways.append(name)
            return search(*given)

        monkeypatch.setattr(nearest, name, noted)
    assert torch.equal(nearest_codes(latents, codebook), searched(latents, codebook))
    assert ways[0] == ("_by_bounds" if units else "_at_once")


@pytest.mark.parametrize(("capability", "unit"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_newer_gpus_have_units(
    capability: tuple[int, int], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert nearest._unit(torch.device("cuda")) == getattr(torch, unit)


def test_products_on_a_gpu_sum_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision sums would break the proof of the bounds; afterwards all is as it was."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    with exact_products(torch.device("cuda")):
        assert matmul.fp32_precision == "ieee"
        assert not matmul.allow_bf16_reduced_precision_reduction
    assert (matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction) == before


@pytest.mark.parametrize("kind", [torch.int16, torch.float32], ids=str)
def test_candidates_are_those_above_the_line(kind: torch.dtype) -> None:
    torch.manual_seed(8)
    keys = torch.randint(-(2**15), 2**15, (50, 3, 64)).to(kind)
    keys[:9] %= 2
    # Keys below zero, whose difference overflows 16 bits, are not above the line.
    line = torch.randint(-1, 2**15, (50,)).to(kind)
    line[:9] = -1
    keys[3:6] -= 1
    tokens, codes = nearest._candidates(keys, keys.amax(2), line)
    expected = (keys.flatten(1) > line[:, None]).nonzero()
    assert len(expected)
    assert torch.equal(torch.stack([tokens, codes], 1), expected)


@pytest.mark.parametrize("wanted", [1, 40])
def test_candidates_are_settled_in_any_number_of_slices(
    monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    """Many candidates are settled tile by tile, a slice at a time."""
    monkeypatch.setattr(nearest, "_PAIRS", 50)
    monkeypatch.setattr(settle, "_SLICE", wanted)
    monkeypatch.setattr(nearest, "_MANY", CODES)
    torch.manual_seed(3)
    latents, codebook = twins()
    assert torch.equal(nearest_codes(latents, codebook), searched(latents, codebook))


def test_duplicate_codes_are_searched_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a collapsed codebook a latent has at most one candidate per distinct code."""
    torch.manual_seed(6)
    codebook = randn(3, DIM)[torch.arange(CODES) % 3]
    assert nearest._distinct(codebook).tolist() == [0, 1, 2]
    latents, seen = randn(LATENTS, DIM), []
    real = nearest.settle

    def watched(tokens: Tensor, *rest: Tensor) -> None:
        seen.append(len(tokens))
        real(tokens, *rest)

    monkeypatch.setattr(nearest, "settle", watched)
    assert torch.equal(nearest._by_bounds(latents, codebook), searched(latents, codebook))
    assert sum(seen) <= 3 * LATENTS


def test_threads_search_and_multiply_side_by_side() -> None:
    """The search does not change the process-wide precision of products."""
    torch.manual_seed(7)
    latents, codebook = beside(1e-4)
    truth, factor = searched(latents, codebook), randn(200, 200)
    exact = factor.double() @ factor.double()
    matmul, wrong = torch.backends.mkldnn.matmul, []
    before = matmul.fp32_precision

    def search() -> None:
        for _ in range(30):
            if not torch.equal(nearest._by_bounds(latents, codebook), truth):
                wrong.append("codes")

    def multiply() -> None:
        for _ in range(300):
            if (factor @ factor - exact).abs().max() > 1e-3:
                wrong.append("product")

    threads = [threading.Thread(target=each) for each in (search, search, multiply)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert matmul.fp32_precision == before


@pytest.mark.slow
def test_a_compiled_caller_finds_the_same() -> None:
    torch.manual_seed(9)
    latents, codebook = beside(1e-4)
    compiled = torch.compile(lambda x, e: nearest_codes(2 * x, e) + 1, backend="eager")
    assert torch.equal(compiled(latents / 2, codebook) - 1, searched(latents, codebook))


def test_values_whose_squares_underflow_get_some_index() -> None:
    latents, codebook = (1e-310 * torch.randn(9, 4, dtype=torch.float64) for _ in range(2))
    assert (nearest_codes(latents, codebook) < 9).all()
    assert (nearest_codes(torch.ones(9, 4), codebook) < 9).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0)], ids=str)
def test_empty_latents(shape: tuple[int, int, int]) -> None:
    latents, codes, dim = shape
    indices = nearest_codes(torch.empty(latents, dim), torch.randn(codes, dim))
    assert torch.equal(indices, torch.zeros(latents, dtype=torch.int64))


def test_search_on_the_meta_device() -> None:
    found = nearest_codes(torch.empty(5, 4, device="meta"), torch.empty(3, 4, device="meta"))
    assert found.shape == (5,)


def test_nan_gets_some_index() -> None:
    latents, codebook = randn(9, 4), randn(5, 4)
    latents[2], latents[5, 1] = torch.nan, torch.inf
    indices = nearest_codes(latents, codebook)
    whole = latents.isfinite().all(1)
    assert torch.equal(indices[whole], searched(latents[whole], codebook))
    assert ((indices >= 0) & (indices < 5)).all()
    codebook[1] = torch.nan
    assert ((nearest_codes(latents, codebook) >= 0) & (indices < 5)).all()


@pytest.mark.parametrize("precision", ["bf16", "ieee", "none"])
@pytest.mark.parametrize("case", ["spread", "beside their codes by 1e-4"])
def test_the_global_precision_is_ignored_and_kept(precision: str, case: str) -> None:
    torch.manual_seed(4)
    latents, codebook = CASES[case]()
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        with torch.autocast("cpu", torch.bfloat16):
            indices = nearest_codes(latents, codebook)
        assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = before
    assert torch.equal(indices, searched(latents, codebook))


def test_memory_does_not_grow_with_the_latents() -> None:
    """All distances of 2^15 latents to 2^12 codes would take 512 MB."""
    torch.manual_seed(5)
    codebook = randn(2**12, 8)
    latents = randn(2**15, 8)
    many = peak_memory(lambda: nearest_codes(latents, codebook))
    few = peak_memory(lambda: nearest_codes(latents[: 2**12], codebook))
    assert few < 24 * 2**20 * torch.get_num_threads()
    # Only the indices, and one chunk's candidates.
    assert many - few < 2 * 8 * 2**15 + 2**20
