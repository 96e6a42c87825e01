"""The benchmarks of the fast primitives compare only implementations that do the same work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed import attention, peers, search, timing
from benchmarks.speed.timing import Settings

QUICK = Settings(quick=True)
PEERS = [name for name, package in search.PACKAGES.items() if importlib.util.find_spec(package)]


def test_times_are_interleaved_and_compared_round_by_round() -> None:
    turns: list[str] = []
    work = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    times = timing.interleaved(work, seconds=0, rounds=(3, 9))
    assert turns == list("aabb" + "ab" * 3)
    ratios = timing.ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}, "a")
    assert ratios["b"]["median"] == 2
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def test_peak_memory_counts_simultaneous_tensors() -> None:
    def work() -> None:
        for _ in range(3):
            torch.zeros(2**18).add_(1) + 1

    assert 2 * 2**20 <= timing.peak_memory(work) < 2.2 * 2**20


def test_steps_do_the_same_work() -> None:
    figures = search._cell(256, 40, 8, PEERS, QUICK)
    assert set(figures["multiples"]) == {search.OURS, *PEERS}
    assert figures["differing"][search.OURS] == 0
    assert all(each["median"] > 0 for each in figures["multiples"].values())


def test_a_step_with_wrong_codes_is_refused() -> None:
    torch.manual_seed(0)
    codebook, latents = torch.randn(40, 8), torch.randn(1, 8, 16, 16)

    def last(x: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.full((1, 16, 16), 39)
        return codebook[indices].permute(0, 3, 1, 2), indices

    with pytest.raises(AssertionError, match="lazy"):
        search._same_work({"lazy": last}, latents, codebook)


def test_the_reference_uses_exact_differences_and_unit_vectors() -> None:
    torch.manual_seed(0)
    codebook, latents = 3 * torch.randn(40, 8), torch.randn(2, 8, 4, 4)
    truths = search._truths([search.OURS, search.UNIT], latents, codebook)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 8).double()
    for name, a, b in (
        (search.OURS, flat, codebook.double()),
        (search.UNIT, F.normalize(flat), F.normalize(codebook.double())),
    ):
        nearest = (a[:, None] - b).square().sum(2).argmin(1)
        assert truths[name].equal(nearest), name
    assert not truths[search.OURS].equal(truths[search.UNIT])


def test_a_search_with_another_distance_is_refused() -> None:
    torch.manual_seed(0)
    codebook, latents = 3 * torch.randn(40, 8), torch.randn(1, 8, 16, 16)
    step = search._step(search.UNIT, codebook, latents)
    with pytest.raises(AssertionError, match=search.OURS):
        search._same_work({search.OURS: step}, latents, codebook)


def test_libraries_with_too_large_a_matrix_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_DISTANCES", 256 * 40)
    names = [search.ONE_HOT, search.UNIT]
    figures = search._cell(256, 40, 8, names, QUICK)
    assert set(figures["multiples"]) == set(figures["over_ours"]) | {search.OURS}
    assert set(figures["over_ours"]) == {search.UNIT}


def test_llamagens_quantizer_has_its_losses_and_code_usage() -> None:
    torch.manual_seed(0)
    quantizer = peers.UnitQuantizer(3, 2).train()
    quantizer.place(torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]))
    latents = torch.tensor([[3.0, 4.0], [0.0, 0.1]]).t().view(1, 2, 1, 2).requires_grad_()
    quantized, loss, indices = quantizer.quantize(latents)
    assert indices.tolist() == [1, 1]
    assert torch.allclose(quantized.flatten(2)[0].t(), torch.tensor([[0.0, 1.0]] * 2), atol=1e-6)
    # (0.6, 0.8) against (0, 1): (0.36 + 0.04) / 4, once for codes and a quarter of it for latents.
    assert loss.item() == pytest.approx(1.25 * 0.1, rel=1e-5)
    # Entries of the usage buffer that no index has filled yet count as code 0.
    assert quantizer.usage == pytest.approx(2 / 3)
    loss.backward()
    assert quantizer.codes.grad is not None
    assert quantizer.codes.grad[1].any()
    assert not quantizer.codes.grad[[0, 2]].any()


def test_llamagens_entropy_term_is_computed_with_weight_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    latents = torch.randn(1, 8, 4, 4)
    plain, whole = (peers.UnitQuantizer(40, 8, entropy).train() for entropy in (False, True))
    whole.place(plain.codes.detach())
    asked: list[Tensor] = []
    entropy = peers._entropy
    monkeypatch.setattr(peers, "_entropy", lambda x: asked.append(entropy(x)) or asked[-1])
    assert plain.quantize(latents)[1].item() == whole.quantize(latents)[1].item()
    assert len(asked) == 1
    # Confident rows and uniform code usage: the minimum of the entropy loss.
    sure = 100 * torch.eye(40)
    assert entropy(sure).item() == pytest.approx(-torch.tensor(40.0).log().item(), abs=2e-3)
    assert entropy(torch.zeros(5, 40)).item() == pytest.approx(0, abs=2e-3)


def test_an_attention_with_wrong_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "naive", lambda q, k, v, bias: attention.softmax(q, k, v, bias))
    with pytest.raises(AssertionError, match="naive"):
        attention._row((64, 64, 8, 8), torch.float32, QUICK)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_the_page_shows_the_measurements(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "missing": ["x"],
        "limits": {"tflops": 1.0, "gigabytes_per_second": 10.0},
        "cells": [search._cell(256, 40, 8, [], QUICK)],
        "exact": {"ordinary": {search.OURS: 0}},
        "memory": {"size": [256, 40, 8], "megabytes": {search.OURS: 1.5}, "matrix": 0.04},
        "entropy": {
            "size": [256, 40, 8],
            "without": timing.spread([2.0, 2.0]),
            "with": timing.spread([7.0, 7.0]),
        },
    }
    text = search.page(figures, tmp_path)
    assert "| 256 x 40 x 8 |" in text
    assert (
        "at 256 x 40 x 8 that takes 7.00 (7.00–7.00) products instead of 2.00 (2.00–2.00)." in text
    )
    assert "both are rewritten here" in text
    assert "Not installed, so not measured: x." in text
    assert (tmp_path / "search.png").stat().st_size > 1000
