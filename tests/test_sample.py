"""Images drawn by a tiny prior: rules, classes, completion, kills, distances."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import invoke
from PIL import Image
from sets_of_images import as_metric, tiny_model
from table import heldout_of

import genkit
from genkit import Component
from genkit.completion import erased, half, kept_indices
from genkit.errors import GenkitError
from genkit.evaluation.metrics import MeanMetric
from genkit.evaluation.nearest import nearest
from genkit.tokens.sample import sample

pytestmark = pytest.mark.usefixtures("tables")


def test_an_image_depends_on_the_seed_and_its_number_alone(drawn: Path) -> None:
    prior = genkit.load_prior(drawn)
    many = prior.sample(7, seed=3, batch_size=7)
    some = prior.sample(4, seed=3, first=2, batch_size=3)
    assert all(torch.equal(a[2:6], b) for a, b in zip(many, some, strict=True))
    other = prior.sample(7, seed=4)
    assert not torch.equal(many[0], other[0])
    assert len({tuple(row.flatten().tolist()) for row in many[0]}) == 7


def test_classes_by_name_number_and_per_class(drawn: Path, tmp_path: Path) -> None:
    code, output = invoke(
        "sample",
        str(drawn),
        "--classes",
        "blond, 2",
        "--per-class",
        "2",
        "--out",
        str(tmp_path / "a"),
    )
    assert code == 0, output
    tokens = genkit.load_tokens(tmp_path / "a" / "tokens.safetensors")
    assert tokens.labels.tolist() == [4, 4, 2, 2]
    assert tokens.classes[4] == "blond"
    assert (tmp_path / "a" / "00001-blond.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "green"], "there is no class 'green'"),
        (["--guidance", "2"], "guidance needs a condition: name classes"),
        (["--steps", "8"], "does not use steps"),
        (["--top-p", "2"], "top_p must be from 0 to 1"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--number", "0"], "0 is not in the range"),
        (["--number", "2", "--per-class", "2"], "give --number or --per-class"),
        (["--condition", "nowhere.safetensors"], "there is no file"),
        (["--complete", "nowhere.png", "--keep", "top"], "there is no image"),
        (["--keep", "top"], "belong together"),
    ],
)
def test_wrong_draws(options: list[str], message: str, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = invoke("sample", str(drawn), "--out", str(out), *options)
    assert code in (1, 2)
    assert message in output
    assert "Traceback" not in output
    assert not out.exists()


def test_completion_keeps_what_it_is_told(drawn: Path, trained: Path, tmp_path: Path) -> None:
    prior = genkit.load_prior(drawn)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    mask = half("top", 32, 32)
    kept = kept_indices(prior, image, mask)
    assert [(level >= 0).float().mean().item() for level in kept] == [0.5, 0.5]
    changed = image.clone()
    changed[:, :, 16:] = -changed[:, :, 16:]
    assert all(map(torch.equal, kept, kept_indices(prior, changed, mask)))
    found = prior.sample(4, kept=kept)
    for level, fixed in zip(found, kept, strict=True):
        assert torch.equal(
            level[:, : level.shape[1] // 2], fixed[:, : level.shape[1] // 2].expand(4, -1, -1)
        )
    assert not torch.equal(found[0][0], found[0][1])
    picture, black = tmp_path / "picture.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 48), (200, 100, 50)).save(picture)
    Image.new("L", (64, 48), 0).save(black)
    Image.new("L", (60, 48), 255).save(tmp_path / "small.png")
    for keep, message in (
        (str(black), "keeps no whole index"),
        (str(tmp_path / "small.png"), "must be of one size"),
        ("middle", "neither top, bottom, left, right nor a mask file"),
    ):
        code, output = invoke(
            "sample",
            str(drawn),
            "--complete",
            str(picture),
            "--keep",
            keep,
            "--out",
            str(tmp_path / "no"),
        )
        assert code == 2
        assert message in output
    code, output = invoke(
        "sample",
        str(drawn),
        "--complete",
        str(picture),
        "--keep",
        "left",
        "--out",
        str(tmp_path / "yes"),
    )
    assert code == 0, output


def test_the_erased_part_takes_the_mean_of_its_neighbourhood() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, :, 16:] = 0.5
    image[:, :, :8] = -1.0
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[20:28, 24:30] = False
    assert torch.allclose(erased(image, mask), image, atol=0.05)
    uneven = erased(torch.full((1, 3, 48, 20), 0.25), half("left", 48, 20))
    assert torch.allclose(uneven, torch.tensor(0.25))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_draw_ends_with_the_same_bytes(
    processes: int, drawn: Path, tmp_path: Path
) -> None:
    script = tmp_path / "draw.py"
    script.write_text(
        "import sys, genkit\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from table import Table\n"
        "genkit.register(genkit.Component('prior', 'table', Table))\n"
        "from genkit.tokens.sample import sample\n"
        "sample(genkit.load_prior(sys.argv[1]), sys.argv[2], 300, batch_size=4)\n"
    )
    sample(genkit.load_prior(drawn), tmp_path / "whole", 300, batch_size=4)

    def start() -> list[subprocess.Popen[bytes]]:
        return [
            subprocess.Popen(
                [sys.executable, script, drawn, tmp_path / "killed"],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                },
            )
            for rank in range(processes)
        ]

    started = start()
    parts = tmp_path / "killed" / "tokens.safetensors.unfinished"
    while len(list(parts.glob("*.safetensors"))) < 5:
        assert all(each.poll() is None for each in started)
        time.sleep(0.01)
    for each in started:
        each.send_signal(signal.SIGKILL)
        each.wait()
    assert not (tmp_path / "killed" / "tokens.safetensors").exists()
    for each in start():
        assert each.wait() == 0
    for name in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not parts.exists()


def test_another_draw_into_an_unfinished_folder_is_refused(drawn: Path, tmp_path: Path) -> None:
    prior = genkit.load_prior(drawn)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(prior, tmp_path / "out", 8, batch_size=2, progress=stop)
    with pytest.raises(GenkitError, match="was begun with seed 0, not 1"):
        sample(prior, tmp_path / "out", 8, batch_size=2, seed=1)
    assert len(sample(prior, tmp_path / "out", 8, batch_size=2)) == 8


def test_the_nearest_training_image_is_found(drawn: Path, tmp_path: Path) -> None:
    code, output = invoke("sample", drawn, "--number", "3", "--nearest", "--out", tmp_path / "out")
    assert code == 0, output
    assert "mean squared distances from 0." in output
    with Image.open(tmp_path / "out" / "nearest.png") as picture:
        assert picture.size == (3 * 130 - 2, 2 * 130 - 2)
    split = heldout_of(drawn)
    images = split.images([5, 2])
    found = nearest(images, split)
    assert found.names == [split.name(5), split.name(2)]
    assert np.array_equal(found.pictures, images)
    assert max(found.distances) == pytest.approx(0, abs=1e-6)


def test_samples_are_compared_with_training_images(drawn: Path, tmp_path: Path) -> None:
    metric = as_metric(tiny_model(tmp_path))
    code, output = invoke(
        "evaluate", drawn, "--images", "4", "--samples", "6", "--metric", metric, "--json"
    )
    assert code == 0, output
    record = json.loads(output)
    assert record["distances_kid"] > 0
    options = record["metrics"]["distances_kid"]["options"]
    assert (options["images"], options["reference_images"], options["paired"]) == (6, 6, "no")
    genkit.register(Component("metric", "paired", Paired))
    for flags, message in (
        (["--metric", metric], "give --samples N"),
        (["--samples", "4", "--metric", "paired"], "compares images with their reconstructions"),
    ):
        code, output = invoke("evaluate", drawn, "--images", "4", *flags)
        assert code == 2
        assert message in output


class Paired(MeanMetric):
    label, better = "difference", "lower"

    def values(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        return (images - reconstructions).abs().mean((1, 2, 3))
