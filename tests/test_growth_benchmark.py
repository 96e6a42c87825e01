"""The benchmark of how cost grows: what it calls linear, and that it draws what it measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import growth
from benchmarks.speed.timing import spread


def test_exponents_are_those_of_powers() -> None:
    sizes = [1, 2, 8, 32]
    for power in (0.0, 1.0, 2.5):
        costs = [3 * size**power for size in sizes]
        assert growth.exponent(sizes, costs) == pytest.approx(power)
        assert growth.slopes(sizes, costs) == pytest.approx([power] * 3)


def test_the_course_names_where_growth_is_linear() -> None:
    sizes = [1, 10, 100, 1000]
    assert growth.course(sizes, [0.1, 0.9, 1.1]) == "sublinear 1–10, linear 10–1,000"
    assert growth.course(sizes, [1.0, 1.3, 0.79]) == (
        "linear 1–10, superlinear 10–100, sublinear 100–1,000"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws the page's curves"
)
def test_the_page_has_every_growth_and_its_picture(tmp_path: Path) -> None:
    def grown(panel: str, sizes: list[int], raised: int) -> dict[str, Any]:
        return {
            "panel": panel,
            "raised": raised,
            "sizes": sizes,
            "default": sizes[1],
            "seconds": [spread([0.001 * size**raised] * 3) for size in sizes],
            "bytes": [1e6 * (1 + size) for size in sizes],
        }

    figures = {
        "device": "cpu",
        "growths": {
            "pixels, with attention": grown("resolution", [32, 64, 128], 2),
            "batch": grown("images a step", [1, 4, 16], 1),
        },
        "processes": {
            "cores": 2,
            "sizes": [1, 2],
            "images_per_second": [spread([20.0, 20.0]), spread([30.0, 30.0])],
            "bytes": [1e9, 1e9],
        },
    }
    text = growth.page(figures, tmp_path)
    assert "| pixels, with attention | ms | 32: 1,024, 64: 4,096, 128: 16,384 | **1.00** |" in text
    assert "| 2 | 30.0 (30.0–30.0) | 75% |" in text
    assert (tmp_path / "growth.png").stat().st_size > 1000
