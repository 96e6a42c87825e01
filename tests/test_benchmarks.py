"""The benchmarks' measurements and pages, without their long runs."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from benchmarks import adversarial, jobs, paper, symmetry

ROOT = Path(__file__).parent.parent


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    jobs.fill(page, "a", jobs.table(["x", "y"], [["1", "2"]]))
    assert page.read_text() == (
        "before\n<!-- a -->\n| x | y |\n| --- | --- |\n| 1 | 2 |\n<!-- /a -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="no marks"):
        jobs.fill(page, "b", "")


def test_spread_is_mean_and_deviation() -> None:
    assert jobs.spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert jobs.spread([2.0], 0) == "2"


def test_every_table_has_its_place_in_the_page() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    code = "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("paper", "rate"))
    for name in ("symmetry", "collapse", "rate", "p64", "parts"):
        assert f'"{name}"' in code
        assert f"<!-- {name} -->" in page


def test_rows_of_the_adversarial_benchmark() -> None:
    figure = {"psnr": 30.0, "ssim": 0.5, "distances_kid": 0.02, "distances_kid_error": 0.001}
    other = figure | {"psnr": 31.0, "distances_kid": 0.03, "distances_kid_error": 0.003}
    text = partial(adversarial.text_of, steps=500, more=250)
    found = adversarial.rows({"decoder-with": [figure | {"fd": 9.04}, other]}, text)
    assert found == [
        [
            "500 steps, then 250 of the decoder, with a discriminator",
            "30.50 ± 0.71",
            "0.5000 ± 0.0000",
            "0.0250 ± 0.0071",
            "0.0020",
            "9.0",
        ]
    ]
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert "<!-- recipe-64 -->" in page
    assert "<!-- recipe-128 -->" in page


def faces_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Any
) -> dict[str, float]:
    """The figures of a tokenizer that reconstructs `change(images)`."""
    monkeypatch.setattr(
        symmetry.genkit, "load", lambda path: lambda x: SimpleNamespace(images=change(x))
    )
    monkeypatch.setattr(symmetry.genkit, "inspect", lambda path: {"training": {"resolution": 64}})
    monkeypatch.setattr(symmetry, "_IMAGES", 64)
    figures: dict[str, float] = symmetry.symmetry(tmp_path)["symmetry"]
    return figures


def test_a_perfect_reconstruction_has_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = faces_measured(monkeypatch, tmp_path, lambda images: images)
    assert all(value == pytest.approx(0, abs=1e-3) for value in figures.values())


def test_a_brighter_picture_changes_colour_but_not_symmetry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Adding 10 of 255 to every pixel gives an error of 10 in colour and 0 in symmetry."""
    figures = faces_measured(monkeypatch, tmp_path, lambda images: images + 20 / 255)
    for part in symmetry.PARTS:
        assert figures[f"colour_{part}"] == pytest.approx(10, abs=0.01)
        assert figures[f"symmetry_{part}"] == pytest.approx(0, abs=0.01)


def test_one_brighter_side_is_a_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ramp = torch.linspace(-1, 1, 64) * 40 / 255
    figures = faces_measured(monkeypatch, tmp_path, lambda images: images + ramp)
    assert figures["symmetry_earring"] > figures["symmetry_iris"] > 2


def test_the_interval_contains_the_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = [tmp_path / f"a{i}" for i in range(3)], [tmp_path / f"b{i}" for i in range(3)]
    for mean, group in ((3.0, a), (1.0, b)):
        for path in group:
            path.mkdir()
            np.savez(path / "symmetry.npz", iris=mean + rng.normal(size=200))
    mean, low, high = symmetry.interval(a, b, "iris")
    assert low < mean < high
    assert mean == pytest.approx(2, abs=0.2)
    assert high - low < 0.6
    low, high = symmetry.interval(a, a, "iris")[1:]
    assert low < 0 < high


@pytest.mark.slow
def test_a_benchmark_run_is_measured_once(tmp_path: Path) -> None:
    """In its own process, like the benchmarks; the second time it only reads the results."""
    script = tmp_path / "go.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom benchmarks.jobs import Job, run_all\n"
        "if __name__ == '__main__':\n"
        "    settings = json.loads(sys.argv[1])\n"
        "    figures = run_all([Job('tiny', [settings])], Path(sys.argv[2]), 1)\n"
        "    print(json.dumps(figures['tiny']))\n"
    )
    command = [sys.executable, str(script), json.dumps(TINY), str(tmp_path / "out")]
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        outputs.append(done.stdout.splitlines())
    assert outputs[0][0].startswith("tiny: ")
    assert len(outputs[1]) == 1
    assert outputs[0][1] == outputs[1][0]
    figures = json.loads(outputs[1][0])
    assert figures["seconds_a_step"] > 0
    assert figures["memory_mb"] > 100
    assert len(figures["levels"]) == len(figures["train"]) == 2


def test_the_papers_grid_consists_of_its_models() -> None:
    """Every job is a valid run with the size that its preset states."""
    from genkit.run.options import layered, resolve_run

    for size in ("small", "paper"):
        grid = paper.Grid(size, ".", 3, Path("out"), 1)
        names = set()
        for model in paper.MODELS:
            for patchgan in (False, True):
                job = grid.job(model, "faces", 2, patchgan=patchgan)
                run: Any = resolve_run(layered(job.preset, *job.layers))
                assert run.seed == 2
                assert bool(run.discriminator) == patchgan
                assert run.encoder.options.levels == (1 if model.startswith("A ") else 2)
                assert run.encoder.options.norm == "batch"
                assert run.decoder.options.sees == "finest"
                assert run.reconstruction.name == "l1"
                names.add(job.name)
        assert len(names) == 2 * len(paper.MODELS)
