"""The benchmark of cost growth: its definition of linear, and its page and picture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from benchmarks.speed import growth, ours
from benchmarks.speed.timing import spread
from genkit.run.options import layered, resolve_run
from genkit.tokenizer import Tokenizer


def test_exponents_of_powers_are_exact() -> None:
    sizes = [1, 2, 8, 32]
    for power in (0.0, 1.0, 2.5):
        costs = [3 * size**power for size in sizes]
        assert growth.exponent(sizes, costs) == pytest.approx(power)
        assert growth.slopes(sizes, costs) == pytest.approx([power] * 3)


def test_the_course_names_linear_ranges() -> None:
    sizes = [1, 10, 100, 1000]
    assert growth.course(sizes, [0.1, 0.9, 1.1]) == "sublinear 1–10, linear 10–1,000"
    assert growth.course(sizes, [1.0, 1.3, 0.79]) == (
        "linear 1–10, superlinear 10–100, sublinear 100–1,000"
    )


def test_simulated_processes_count_their_cpu_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def side_by_side(settings: Any, count: int, steps: int, joined: bool) -> list[ours.Share]:
        asked.append((count, steps, joined))
        seconds = 0.1 + 0.01 * count * joined
        return [ours.Share([seconds] * steps, 1000 * joined, 0.02 * joined)] * count

    monkeypatch.setattr(ours, "side_by_side", side_by_side)
    found = ours.turns({"batch_size": 8}, (1, 4, 16), quick=False)
    assert asked == [(1, 16, False), (4, 4, False), (4, 4, True), (16, 2, False), (16, 2, True)]
    assert [each["median"] for each in found["together"]] == pytest.approx([0.1, 0.14, 0.26])
    assert [each["median"] for each in found["apart"]] == pytest.approx([0.1] * 3)
    assert [each["rounds"] for each in found["together"]] == [16, 16, 32]
    assert found["handed"] == [0, 1000, 1000]
    assert found["waiting"] == 0.02
    assert growth._at_most(found) == pytest.approx([80, 4 * 8 / 0.14, 16 * 8 / 0.26])
    assert growth._total(found) == pytest.approx(
        growth.exponent([1, 4, 16], [0.1, 4 * 0.14, 16 * 0.26])
    )
    assert growth._total({**found, "together": found["apart"]}) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface is called lo on Linux")
def test_real_processes_send_their_gradients_and_statistics() -> None:
    settings = {**TINY, "quantizer": {"codebook_size": 16, "revive": 0}}
    apart, together = (ours.side_by_side(settings, 2, 2, joined) for joined in (False, True))
    for share in (*apart, *together):
        assert len(share.seconds) == 2
        assert all(0 < seconds < 10 for seconds in share.seconds)
    tokenizer = Tokenizer(resolve_run(layered(None, settings)))
    gradients = sum(parameter.numel() for parameter in tokenizer.parameters())
    statistics = sum(16 * (1 + level.channels) for level in tokenizer.levels)
    # Three more numbers: whether the step is finite, whether its searches are in doubt, and whether
    # to stop.
    assert [share.handed for share in together] == [4 * (gradients + statistics + 3)] * 2
    assert [share.handed for share in apart] == [0, 0]
    assert max(share.waiting for share in together) < 0.2


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
        "simulated": {
            "batch": 8,
            "sizes": [1, 4],
            "together": [spread([0.1, 0.1]), spread([0.125, 0.125])],
            "apart": [spread([0.1, 0.1]), spread([0.11, 0.11])],
            "handed": [0, 8_500_000],
            "waiting": 0.004,
        },
    }
    text = growth.page(figures, tmp_path)
    assert "| pixels, with attention | ms | 32: 1,024, 64: 4,096, 128: 16,384 | **1.00** |" in text
    assert "| 2 | 30.0 (30.0–30.0) | 75% |" in text
    assert "processes take turns on 2 cores and are measured by their CPU time" in text
    assert "| 4 | 125 (125–125) | 110 (110–110) | 8.50 | 256.0 | 80% |" in text
    assert "used 0.4% of its CPU" in text
    assert "to the power of 1.16." in text
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "Simulated" not in growth.page({**figures, "simulated": None}, tmp_path)
