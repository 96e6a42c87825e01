"""The benchmark of encoding with several processes, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import need

from benchmarks import scale
from benchmarks.speed.input import draw


def test_the_first_batch_of_each_worker_is_not_counted() -> None:
    def batch(pid: int, time: float, cpu: float, driver: float) -> dict[str, Any]:
        return {"pid": pid, "time": time, "images": 10, "cpu": cpu, "driver": driver}

    lines = [
        batch(7, 1.0, 50.0, 3.0),
        batch(8, 2.0, 20.0, 3.5),
        batch(7, 3.0, 50.5, 4.0),
        batch(8, 4.0, 20.4, 4.5),
        batch(7, 5.0, 51.5, 5.0),
        batch(9, 1.5, 9.0, 3.1),  # A worker with a single batch.
    ]
    found = scale.course(lines)
    assert found["milliseconds"] == pytest.approx([75, 40])
    assert found["rate"] == pytest.approx(30 / 3)
    assert found["driver"] == 2.0


@pytest.mark.slow
def test_real_processes_encode_their_shards(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images", 64, 2 * 3 * scale._BATCH)
    (tmp_path / "out").mkdir()
    found = scale._together(trained, tmp_path / "images", tmp_path / "out", 2, 3)
    assert len(found["milliseconds"]) == 2
    assert all(0 < each < 1000 for each in found["milliseconds"])
    assert found["rate"] > 0
    index = json.loads((tmp_path / "out" / "shards" / "_index.json").read_text())
    assert [shard["images"] for shard in index["shards"]] == [3 * scale._BATCH] * 2


@pytest.mark.slow
def test_workers_on_ray_report_every_batch(trained: Path, tmp_path: Path) -> None:
    need("ray")
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images", 64, 2 * scale._BATCH)
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        found = scale._on_ray(trained, tmp_path / "images", tmp_path / "out", 1)
    assert len(found["milliseconds"]) == 1
    assert 0 < found["milliseconds"][0] < 1000
    assert found["rate"] > 0
    assert found["driver"] >= 0


def test_the_page_tells_measured_from_simulated(tmp_path: Path) -> None:
    def turns(*each: tuple[float, list[float]]) -> list[dict[str, Any]]:
        return [{"rate": rate, "milliseconds": ms} for rate, ms in each]

    measured = {
        "1": turns((40.0, [10.0]), (20.0, [10.0])),
        "2": turns((60.0, [10.0, 10.0]), (30.0, [10.0, 10.0])),
    }
    simulated = {
        count: {"rate": 35.0, "milliseconds": [ms] * int(count), "driver": 2.5}
        for count, ms in (("1", 10.0), ("16", 12.5))
    }
    machine = {
        "processor": "a processor",
        "units": [],
        "threads": 1,
        "torch": "2",
        "date": "2026-01-01",
        "load": 3.0,
    }
    figures: dict[str, Any] = {"machine": machine, "loads": [3.0, 9.0], "cores": 2, "quick": False}
    figures["batches"] = [24, 8]
    (tmp_path / "performance").mkdir()
    file = tmp_path / "performance" / "scale.json"
    found = {"measured": measured, "simulated": simulated}
    figures |= {name: dict.fromkeys(scale.WAYS, each) for name, each in found.items()}
    file.write_text(json.dumps(figures))
    (tmp_path / "scale.md").write_text(
        "Before.\n<!-- growth -->\nstale\n<!-- /growth -->\nAfter.\n"
    )
    done = CliRunner().invoke(scale.main, ["--render", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "scale.md").read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "stale" not in text
    above, below = text.split("**Simulated: processes take turns on 2 cores")
    assert "3.0 to 9.0 during it" in above
    assert "| `genkit encode` | 2 | 45.0 (30.0–60.0) | 1.50 (1.50–1.50) | 0.45" in above
    assert "| `examples/ray` | 16 | 12.5 (12.5–12.5) | 1,280 | 80% |" in below
    assert "during this: 2.5 with 1, 2.5 with 16." in below
