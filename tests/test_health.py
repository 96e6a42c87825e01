"""Codebook health: exact counts over epochs and processes, ages, collapse alarm, picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, flags, genkit_here, tiny_run
from PIL import Image
from torch.multiprocessing.spawn import spawn

from genkit.evaluation.plot import code_histogram
from genkit.evaluation.usage import CodeCounts, code_use
from genkit.run.options import layered, resolve_run
from genkit.settings import choose
from genkit.testing.tools import met
from genkit.training.health import CodeHealth
from genkit.training.tokenizer import _advice

SIZES = [16, 8]
ONE_EACH = [(1, size) for size in SIZES]
VQ = resolve_run(layered(None)).quantizer


def batches(count: int, images: int = 4, codes: float = 1.0) -> list[list[torch.Tensor]]:
    """Indices per pass: low codes are frequent; the highest never occur if `codes` is below 1."""
    generator = torch.Generator().manual_seed(0)
    return [
        [
            (torch.rand(images, side, side, generator=generator) ** 2 * size * codes).long()
            for size, side in zip(SIZES, (4, 2), strict=True)
        ]
        for _ in range(count)
    ]


def test_perplexity_is_exp_of_the_entropy() -> None:
    use = code_use(torch.tensor([[1, 1, 2, 0]]))
    entropy = -sum(p * np.log(p) for p in (0.25, 0.25, 0.5))
    assert use == {
        "codebook_size": 4,
        "active": 3,
        "usage": 0.75,
        "perplexity": pytest.approx(np.exp(entropy)),
    }
    assert code_use(torch.zeros(1, 3))["perplexity"] == 0


def test_counts_of_an_epoch_are_the_sum_of_its_passes() -> None:
    """With 12 images per epoch and 4 per pass, counts restart every 3 passes."""
    passes = batches(8)
    health = CodeHealth(ONE_EACH, images=4, epoch=12)
    for number, indices in enumerate(passes, 1):
        health.add(indices)
        health.gather()
        last = passes[max(0, number // 3 * 3 - 3) : max(3, number // 3 * 3)][:number]
        images, counts = health.last_epoch()
        assert images == 4 * len(last)
        for level, size in enumerate(SIZES):
            every = torch.cat([each[level].flatten() for each in last])
            assert torch.equal(counts[level][0], torch.bincount(every, minlength=size))


def test_the_age_of_a_code_counts_from_its_last_use() -> None:
    passes = batches(6)
    health = CodeHealth(ONE_EACH, images=4, epoch=8)
    for indices in passes:
        health.add(indices)
    health.gather()
    unused = health.unused()
    summary = health.summary()
    for level, size in enumerate(SIZES):
        ages = []
        for code in range(size):
            used = [n for n, each in enumerate(passes) if (each[level] == code).any()]
            ages.append(4 * (len(passes) - 1 - (used[-1] if used else -1)))
        assert unused[level] == max(ages)
        dead = [age for age in ages if age >= 8]
        assert summary["levels"][level]["dead"] == len(dead)
        assert summary["levels"][level]["dead_age"] == (sum(dead) / len(dead) if dead else 0)


def _count_half(rank: int, folder: str) -> None:
    with met(rank, folder, 2):
        health = CodeHealth(ONE_EACH, images=4, epoch=12)
        for indices in batches(8):
            health.add([each[2 * rank : 2 * rank + 2] for each in indices])
        health.gather()
        figures = health.unused(), health.summary(), health.collapsed(_advice(VQ))
        torch.save((figures, health.state_dict()), Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_count_like_one(tmp_path: Path) -> None:
    spawn(_count_half, (str(tmp_path),), nprocs=2)
    one = CodeHealth(ONE_EACH, images=4, epoch=12)
    for indices in batches(8):
        one.add(indices)
    one.gather()
    expected = one.unused(), one.summary(), one.collapsed(_advice(VQ))
    for rank in range(2):
        figures, state = torch.load(tmp_path / f"{rank}.pt")
        assert figures == expected
        assert all(torch.equal(state[name], value) for name, value in one.state_dict().items())


def test_the_alarm_names_the_level_and_disabled_cures() -> None:
    off = resolve_run(layered(None, {"quantizer": {"revive": 0.0, "kmeans_start": False}}))
    health = CodeHealth(ONE_EACH, images=4, epoch=1000)
    for fine, coarse in batches(20):
        health.add([fine, coarse * 0])
    (alarm,) = health.collapsed(_advice(off.quantizer))
    assert alarm["level"] == 1
    assert alarm["active"] == 1
    assert alarm["message"].startswith("level 1 has collapsed: 1 of 8 codes were used in the last")
    assert "--quantizer.kmeans-start, --quantizer.revive 50" in alarm["message"]
    assert "--quantizer.revive" not in health.collapsed(_advice(VQ))[0]["message"]
    assert "Try a lower --lr" in health.collapsed(_advice(choose("quantizer", "fsq")))[0]["message"]


def test_codebooks_of_a_level_are_counted_separately() -> None:
    """The second of two codebooks collapses, and the alarm names it."""
    rng = np.random.default_rng(0)
    passes = [torch.from_numpy(rng.integers(0, 8, (4, 4, 4, 2))) for _ in range(10)]
    health, counts = CodeHealth([(2, 8)], images=4, epoch=1000), CodeCounts([(2, 8)])
    for indices in passes:
        indices[..., 1] = 5
        health.add([indices])
        counts.add([indices])
    health.gather()
    first = torch.bincount(torch.cat(passes)[..., 0].flatten(), minlength=8)
    second = torch.zeros(8, dtype=torch.int64).index_fill(0, torch.tensor(5), 640)
    for each in (health.last_epoch()[1][0], counts.totals()[0]):
        assert torch.equal(each, torch.stack([first, second]))
    share = first / 640
    (use,) = counts.summary()
    assert use == {
        "codebooks": 2,
        "codebook_size": 8,
        "active": 9,
        "usage": 9 / 16,
        "perplexity": pytest.approx(float(torch.exp(-(share * share.log()).sum() / 2))),
    }
    assert health.summary()["levels"][0]["dead"] == 7
    (alarm,) = health.collapsed(_advice(VQ))
    assert alarm["message"].startswith("level 0, codebook 1, has collapsed: 1 of 8 codes")
    assert code_histogram([("x", counts.totals())]).shape[2] == 3


def test_the_alarm_waits_for_enough_latents() -> None:
    health = CodeHealth(ONE_EACH, images=4, epoch=1000)
    # 20 x 8 latents of the coarse level are 40 images, of the fine level 20 x 16 are 20 images.
    for number, (fine, coarse) in enumerate(batches(12), 1):
        health.add([fine, coarse * 0])
        assert [each["level"] for each in health.collapsed(_advice(VQ))] == (
            [1] if number >= 10 else []
        )


def test_a_late_collapse_is_noticed() -> None:
    """All codes are used once, as after a k-means start, and then never again."""
    health = CodeHealth(ONE_EACH, images=4, epoch=1000)
    for indices in batches(10):
        health.add(indices)
    assert not health.collapsed(_advice(VQ))
    for indices in batches(12):
        health.add([each * 0 for each in indices])
    assert [each["level"] for each in health.collapsed(_advice(VQ))] == [0, 1]


COLLAPSING: dict[str, Any] = {
    "steps": 60,
    "log_every": 10,
    "validate_every": 60,
    "quantizer": {"codebook_size": 64, "kmeans_start": False, "revive": 0.0},
}


def test_a_run_that_collapses_says_so_and_its_cures_help(tmp_path: Path) -> None:
    done = genkit_here(
        "train", *flags(TINY), *flags(COLLAPSING), "--out", "collapsed", cwd=tmp_path
    )
    assert done.returncode == 0
    assert done.stdout.count("Warning: level 1 has collapsed") == 1
    assert "Try --quantizer.kmeans-start, --quantizer.revive 50" in done.stdout
    assert "ended collapsed; see collapsed/codes/" in done.stdout
    cured = {**COLLAPSING, "quantizer": {"codebook_size": 64}}
    rows = tiny_run(tmp_path / "cured", cured).rows
    assert not any("alarms" in row for row in rows)
    epoch = rows[-1]["epoch"]
    assert epoch["images"] == 240
    assert all(level["usage"] > 0.9 for level in epoch["levels"])


def test_every_validation_saves_a_picture_of_the_codes(trained: Path) -> None:
    names = sorted(path.name for path in (trained / "codes").iterdir())
    assert names == ["step-000004.png", "step-000008.png"]
    with Image.open(trained / "codes" / names[-1]) as picture:
        assert picture.width > picture.height > 300


def red(picture: np.ndarray[Any, Any]) -> int:
    return int(((picture[..., 0] > 180) & (picture[..., 1] < 60)).any(0).sum())


def test_the_picture_shows_dead_codes_in_red() -> None:
    counts = CodeCounts([(1, 64)])
    counts.add([torch.arange(64)])
    assert red(code_histogram([("x", counts.totals())])) == 0
    half = CodeCounts([(1, 64)])
    half.add([torch.arange(32)])
    assert red(code_histogram([("x", half.totals())])) == 320
