"""The input benchmark compares the same crops and writes its section."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.speed import input as section
from benchmarks.speed.timing import Settings
from genkit.data.decoding import _TORCH_HAS_LANCZOS

# torchvision's warning about decoding, which only the benchmark uses.
SILENT = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

NEW = pytest.mark.skipif(not _TORCH_HAS_LANCZOS, reason="the others need a newer PyTorch")


@SILENT
@NEW
@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="of the group benchmarks"
)
def test_the_benchmark_compares_the_same_crops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(section, "CASES", [(96, 32, 16), (64, 48, 16)])
    figures = section.measure(Settings(quick=True))
    assert [case["side"] for case in figures["cases"]] == [96, 64]
    for case in figures["cases"]:
        assert case["off"][section.PILLOW] == 0
        assert case["off"][section.OURS] == case["off"][section.KEPT] < 1
        assert all(rate["median"] > 0 for rate in case["rates"].values())
    text = section.page(figures, tmp_path)
    assert "| Pillow + torchvision v2, float |" in text
    assert (tmp_path / "input.png").stat().st_size > 1000


@SILENT
@NEW
def test_the_benchmark_refuses_another_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop shifted by one pixel."""
    monkeypatch.setattr(section, "CASES", [(128, 64, 16)])
    others = section._others

    def shifted(there: Any) -> dict[str, section.Reader]:
        ways = others(there)
        pillow = ways[section.PILLOW]
        return ways | {"shifted": lambda *asked: np.roll(pillow(*asked), 1, axis=1)}

    monkeypatch.setattr(section, "_others", shifted)
    with pytest.raises(SystemExit, match="not give the same crops: shifted"):
        section.measure(Settings(quick=True))
