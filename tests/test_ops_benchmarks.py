"""The benchmarks of the fast primitives compare those who do the same work, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed import attention, search, timing
from benchmarks.speed.timing import Settings

QUICK = Settings(quick=True)
PEERS = [name for name, package in search.PACKAGES.items() if importlib.util.find_spec(package)]


def test_times_are_taken_in_turn_and_compared_round_by_round() -> None:
    turns: list[str] = []
    work = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    times = timing.interleaved(work, seconds=0, rounds=(3, 9))
    assert turns == list("aabb" + "ab" * 3)
    ratios = timing.ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}, "a")
    assert ratios["b"]["median"] == 2
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def test_peak_memory_is_what_lives_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.zeros(2**18).add_(1) + 1

    assert 2 * 2**20 <= timing.peak_memory(work) < 2.2 * 2**20


def test_steps_do_the_same_work() -> None:
    figures = search._cell(256, 40, 8, PEERS, QUICK)
    assert set(figures["multiples"]) == {search.OURS, *PEERS}
    assert figures["differing"][search.OURS] == 0
    assert all(each["median"] > 0 for each in figures["multiples"].values())


def test_a_step_of_other_codes_is_refused() -> None:
    torch.manual_seed(0)
    codebook, latents = torch.randn(40, 8), torch.randn(1, 8, 16, 16)

    def last(x: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.full((1, 16, 16), 39)
        return codebook[indices].permute(0, 3, 1, 2), indices

    with pytest.raises(AssertionError, match="lazy"):
        search._same_work({"lazy": last}, latents, codebook)


def test_an_attention_of_other_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "naive", lambda q, k, v, bias: attention.softmax(q, k, v, bias))
    with pytest.raises(AssertionError, match="naive"):
        attention._row((64, 64, 8, 8), torch.float32, QUICK)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "missing": ["x"],
        "limits": {"tflops": 1.0, "gigabytes_per_second": 10.0},
        "cells": [search._cell(256, 40, 8, [], QUICK)],
        "exact": {"ordinary": {search.OURS: 0}},
        "memory": {"size": [256, 40, 8], "megabytes": {search.OURS: 1.5}, "matrix": 0.04},
    }
    text = search.page(figures, tmp_path)
    assert "| 256 x 40 x 8 |" in text
    assert "Not installed, so not measured: x." in text
    assert (tmp_path / "search.png").stat().st_size > 1000
