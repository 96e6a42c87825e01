"""Priors by a tiny one: training options, files, sampling, completion, conditions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Silent, invoke, rows, same, weights
from PIL import Image
from safetensors.torch import save_file
from sets_of_images import as_metric, tiny_model
from table import Table
from tasks import prior_run

import genkit
from genkit import Component
from genkit.completion import erased, half, kept_indices
from genkit.errors import CheckpointError, DataError, GenkitError, OptionError
from genkit.evaluation.metrics import MeanMetric
from genkit.evaluation.nearest import nearest
from genkit.layout import Grid, Layout
from genkit.tokens.sample import sample
from genkit.training.loop import train
from genkit.training.prior import PriorTask

QUICK: dict[str, Any] = {
    "prior": "table",
    "data": {"heldout": 8, "size": 500},
    "optimizer": "adamw",
    "schedule": "cosine",
    **{"steps": 20, "batch_size": 8, "lr": 0.3, "warmup": 0, "ema": 0.0, "shown": 2},
    **{"validation_images": 8, "log_every": 10, "validate_every": 10},
}


@pytest.fixture(autouse=True)
def registered() -> None:
    genkit.register(Component("prior", "table", Table))


@pytest.fixture(scope="module")
def drawn(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a prior with the colour of hair as its classes."""
    genkit.register(Component("prior", "table", Table))
    out = tmp_path_factory.mktemp("prior") / "run"
    genkit.train_prior(trained, {**QUICK, "steps": 60, "labels": "hair"}, out=out)
    return out


def test_a_layout_orders_levels_places_and_codebooks() -> None:
    layout = Layout([Grid(4, 6, 2, 16), Grid(2, 3, 1, 8)])
    assert len(layout) == 54
    assert layout.level.tolist()[:7] == [1] * 6 + [0]
    assert layout.row.tolist()[:6] == [0, 0, 0, 1, 1, 1]
    assert layout.codebook.tolist()[6:10] == [0, 1, 0, 1]
    assert layout.column.tolist()[6:10] == [0, 0, 1, 1]
    assert layout.size.tolist()[5:7] == [8, 16]
    indices = [torch.randint(16, (2, 4, 6, 2)), torch.randint(8, (2, 2, 3))]
    assert all(map(torch.equal, layout.unflatten(layout.flatten(indices)), indices))
    assert Layout.read(json.loads(json.dumps(layout.table()))) == layout
    with pytest.raises(GenkitError, match="the indices have grids"):
        layout.flatten(indices[:1])


def test_a_run_directory_is_whole_by_itself(drawn: Path, trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(drawn, moved)
    prior = genkit.load_prior(moved)
    assert same(prior.tokenizer.state_dict(), genkit.load(trained).state_dict())
    assert prior.classes[4] == "blond"
    assert prior.size == (32, 32)
    assert len(list((moved / "samples").iterdir())) == 6
    images = prior.generate(3, seed=1, classes=["blond", None, 2], guidance=2.0, top_p=0.9)
    assert images.shape == (3, 3, 32, 32)
    assert images.abs().max() <= 1
    assert rows(moved)[-1]["validation"]["nats"] < rows(moved)[0]["validation"]["nats"]


def test_nats_are_those_of_validation(drawn: Path, trained: Path) -> None:
    prior = genkit.load_prior(drawn)
    validation = rows(drawn)[-1]["validation"]
    tokens = genkit.load_tokens(drawn / "tokens" / "heldout")
    nats = prior.nats(tokens.batch(0, len(tokens)), classes=tokens.labels.tolist())
    assert float(nats.mean()) / len(prior.layout) == pytest.approx(validation["nats"], abs=1e-6)
    bits = float(nats.mean()) / np.log(2) / 32**2
    assert bits == pytest.approx(validation["bits_per_pixel"], abs=1e-6)
    assert validation["bits_per_pixel"] == pytest.approx(
        sum(level["bits_per_pixel"] for level in validation["levels"])
    )


def test_an_image_depends_on_the_seed_and_its_number_alone(drawn: Path) -> None:
    prior = genkit.load_prior(drawn)
    many = prior.sample(7, seed=3, batch_size=7)
    some = prior.sample(4, seed=3, first=2, batch_size=3)
    assert all(torch.equal(a[2:6], b) for a, b in zip(many, some, strict=True))
    other = prior.sample(7, seed=4)
    assert not torch.equal(many[0], other[0])
    assert len({tuple(row.flatten().tolist()) for row in many[0]}) == 7


def test_a_command_trains_and_another_draws(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = (
        "--prior table --steps 5 --batch-size 4 --validation-images 4 --shown 0 --data.heldout 4"
    )
    code, output = invoke(
        "train-prior", str(trained), *flags.split(), "--optimizer", "adamw", "--schedule", "cosine"
    )
    assert "Next: genkit sample runs/run-prior" in output
    assert "bits per pixel" in output
    code, output = invoke(
        "sample",
        "runs/run-prior",
        "--number",
        "5",
        "--out",
        "drawn",
        "--npz",
        "all.npz",
        "--batch-size",
        "2",
    )
    assert code == 0, output
    assert sorted(path.name for path in Path("drawn").iterdir()) == [
        *(f"{number:05d}.png" for number in range(5)),
        "grid.png",
        "tokens.safetensors",
    ]
    array = np.load("all.npz")["arr_0"]
    assert array.shape == (5, 32, 32, 3)
    assert np.array_equal(array[3], np.asarray(Image.open("drawn/00003.png")))
    tokens = genkit.load_tokens("drawn/tokens.safetensors")
    tokens.check(genkit.load(trained))
    assert tokens.table["sampled"]["seed"] == 0
    code, output = invoke("sample", "runs/run-prior", "--out", "drawn")
    assert code == 1
    assert "is a folder with files already" in output
    # A config names the tokenizer as well.
    code, output = invoke("train-prior", "--config", "runs/run-prior/config.toml", "--steps", "1")
    assert "Next: genkit sample runs/run-prior-2" in output
    code, output = invoke("train-prior", "--steps", "1")
    assert "name the tokenizer: genkit train-prior TOKENIZER" in output


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


def test_another_tokenizer_is_refused(drawn: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    other = genkit.load(trained)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    genkit.save(other, copy / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="is not the tokenizer that the prior"):
        genkit.load_prior(copy)
    (copy / "tokenizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        genkit.load_prior(copy)
    with pytest.raises(CheckpointError, match="holds a prior, not a tokenizer"):
        genkit.load(drawn)
    with pytest.raises(CheckpointError, match="holds a tokenizer, not a prior"):
        genkit.load_prior(trained)


def test_a_cache_serves_other_runs_on_the_same_images_alone(trained: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = genkit.train_prior(trained, {**QUICK, "cache_tokens": cache}, out=tmp_path / "a")
    before = (tmp_path / "cache" / "train-160" / "00000.safetensors").stat().st_mtime_ns
    second = genkit.train_prior(trained, {**QUICK, "cache_tokens": cache}, out=tmp_path / "b")
    assert (tmp_path / "cache" / "train-160" / "00000.safetensors").stat().st_mtime_ns == before
    assert same(first.state_dict(), second.state_dict())
    with pytest.raises(OptionError, match="was encoded without the labels hair"):
        genkit.train_prior(
            trained, {**QUICK, "cache_tokens": cache, "labels": "hair"}, out=tmp_path / "c"
        )
    with pytest.raises(CheckpointError, match="holds the indices of another data set"):
        genkit.train_prior(
            trained, {**QUICK, "cache_tokens": cache, "data": {"noise": 2}}, out=tmp_path / "d"
        )


def test_a_run_interrupted_while_it_encodes_is_resumed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Silent):
        def prepare(self, what: str, done: int, total: int) -> None:
            if 8 < done < total:
                raise KeyboardInterrupt

    monkeypatch.setenv("TOKENIZER", str(trained))
    run, out = prior_run(steps=4, accumulate=1), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(PriorTask, run, out, Interrupted())
    assert list((out / "tokens").glob("train-*/unfinished.json"))
    assert train(PriorTask, run, out, Silent(), resume=True)
    assert train(PriorTask, run, tmp_path / "whole", Silent())
    assert same(weights(out), weights(tmp_path / "whole"))


def test_no_more_is_encoded_than_is_drawn(trained: Path, photographs: Path, tmp_path: Path) -> None:
    def encoded(name: str, **settings: Any) -> tuple[int, Any]:
        out = tmp_path / name
        genkit.train_prior(trained, {**QUICK, "steps": 2, **settings}, out=out)
        (folder,) = (out / "tokens").glob("train*")
        tokens = genkit.load_tokens(folder)
        return len(tokens), tokens.table["views"]

    assert encoded("faces") == (16, 1)
    place = {"name": "folder", "location": str(photographs), "heldout": 0.3, "short_side": 40}
    images, views = encoded("views", data=place, steps=5)
    assert views == -(-5 * 8 // (images // views)) > 1
    assert encoded("two", data=place, steps=5, views=2)[1] == 2
    for path in photographs.rglob("*.png"):
        Image.open(path).resize((48, 48)).save(path)
    fixed = {**place, "short_side": 0, "flip": False}
    assert encoded("fixed", data=fixed, steps=5)[1] == 1


def test_a_longer_run_encodes_more_images(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    genkit.train_prior(trained, {**QUICK, "steps": 2}, out=out)
    genkit.train_prior(trained, {**QUICK, "steps": 10}, out=out, resume=True)
    genkit.train_prior(trained, {**QUICK, "steps": 100}, out=out, resume=True)
    folders = {path.name: genkit.load_tokens(path) for path in (out / "tokens").glob("train*")}
    assert {name: len(tokens) for name, tokens in folders.items()} == {
        "train-16": 16,
        "train-80": 80,
        "train-2-views": 1000,
    }


def test_always_encoding_sees_new_views_in_every_step(trained: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "encode": "always", "labels": "hair"}
    prior = genkit.train_prior(trained, settings, out=tmp_path / "run")
    assert not (tmp_path / "run" / "tokens" / "train").exists()
    found = rows(tmp_path / "run")
    assert found[-1]["validation"]["nats"] < found[0]["validation"]["nats"]
    assert prior.classes


def test_a_resolution_that_the_strides_do_not_divide(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"36 is not a multiple of .* stride, 8"):
        genkit.train_prior(trained, {**QUICK, "resolution": 36}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_untrained_prior_is_written_and_goes_on(trained: Path, tmp_path: Path) -> None:
    untrained = genkit.train_prior(trained, {**QUICK, "steps": 0}, out=tmp_path / "run")
    assert not untrained.model.logits.any()
    longer = genkit.train_prior(trained, {**QUICK, "steps": 3}, out=tmp_path / "run", resume=True)
    assert longer.model.logits.any()


def test_the_best_weights_are_kept(trained: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "steps": 8, "lr": 100.0, "log_every": 1, "validate_every": 1}
    last = genkit.train_prior(trained, settings, out=tmp_path / "last")
    best = genkit.train_prior(trained, {**settings, "keep_best": True}, out=tmp_path / "best")
    losses = {row["step"]: row["validation"]["nats"] for row in rows(tmp_path / "best")}
    assert best.facts["step"] == min(losses, key=losses.__getitem__) < 8
    assert last.facts["step"] == 8
    tokens = genkit.load_tokens(tmp_path / "best" / "tokens" / "heldout")
    nats = float(best.nats(tokens.batch(0, len(tokens))).mean()) / len(best.layout)
    assert nats == pytest.approx(min(losses.values()), abs=1e-6)


def test_vectors_by_name(trained: Path, photographs: Path, tmp_path: Path) -> None:
    names = [str(path.relative_to(photographs)) for path in sorted(photographs.rglob("*.png"))]
    file = tmp_path / "vectors.safetensors"
    data = {"name": "folder", "location": str(photographs), "heldout": 0.3}
    save_file({name: torch.rand(1 + n % 3, 5) for n, name in enumerate(names)}, file)
    settings = {**QUICK, "data": data, "condition": str(file)}
    prior = genkit.train_prior(trained, settings, out=tmp_path / "run")
    assert (prior.conditioning.length, prior.conditioning.channels) == (3, 5)
    code, output = invoke(
        "sample",
        str(tmp_path / "run"),
        "--condition",
        str(file),
        "--number",
        "3",
        "--guidance",
        "2",
        "--out",
        str(tmp_path / "drawn"),
    )
    assert code == 0, output
    with pytest.raises(OptionError, match="trained without classes"):
        prior.generate(1, classes=[0])
    with pytest.raises(OptionError, match=r"shape \[1, 2, 4\]; 1 images need \[1, T, 5\]"):
        prior.generate(1, vectors=torch.rand(1, 2, 4))
    with pytest.raises(OptionError, match="can have 3 vectors, not 4"):
        prior.generate(1, vectors=torch.rand(1, 4, 5))
    save_file({name: torch.rand(2, 5) for name in names[1:]}, file)
    with pytest.raises(DataError, match="has no vectors for 1 of"):
        genkit.train_prior(trained, settings, out=tmp_path / "other")
    save_file({"a": torch.rand(2, 5), "b": torch.rand(2, 6)}, file)
    with pytest.raises(DataError, match="different sizes"):
        genkit.train_prior(trained, settings, out=tmp_path / "another")


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


def test_labels_that_the_data_do_not_have(trained: Path, photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'data\.label' is 'teeth'"):
        genkit.train_prior(trained, {**QUICK, "labels": "teeth"}, out=tmp_path / "a")
    with pytest.raises(OptionError, match="faces has no classes"):
        genkit.train_prior(trained, {**QUICK, "labels": "own"}, out=tmp_path / "a")
    data = {"name": "folder", "location": str(photographs)}
    with pytest.raises(OptionError, match="has no option label; --labels own"):
        genkit.train_prior(trained, {**QUICK, "labels": "hair", "data": data}, out=tmp_path / "a")
    prior = genkit.train_prior(
        trained, {**QUICK, "labels": "folders", "data": data}, out=tmp_path / "a"
    )
    assert prior.classes == ["a", "b"]
    assert weights(tmp_path / "a")["logits"].shape[0] == 3


def test_evaluate_and_inspect_know_a_prior(drawn: Path, trained: Path, tmp_path: Path) -> None:
    code, output = invoke("evaluate", drawn, "--json", "--out", tmp_path / "record.json")
    assert code == 0, output
    record = json.loads(output)
    assert record == json.loads((tmp_path / "record.json").read_text())
    last = rows(drawn)[-1]["validation"]
    assert record["images"] == last["images"] == 8
    assert record["nats"] == pytest.approx(last["nats"], abs=1e-6)
    assert record["exact"] is True
    assert record["protocol"]["split"] == "heldout"
    prior = genkit.load_prior(drawn)
    assert record["plain_bits_per_pixel"] == prior.tokenizer.bits_per_pixel
    tokenizer = genkit.evaluate(drawn / "tokenizer.safetensors", data=_heldout(drawn))
    assert record["psnr"] == pytest.approx(tokenizer["psnr"], abs=1e-4)
    code, output = invoke("evaluate", drawn, "--images", "4")
    assert "4 held-out images of faces at 32 px: bits per pixel" in output
    assert "level 1:" in output
    code, output = invoke("evaluate", drawn, "--exact")
    assert (code, "--exact applies to tokenizers" in output) == (2, True)
    code, output = invoke("evaluate", trained, "--condition", "x")
    assert (code, "--condition applies to priors" in output) == (2, True)
    code, output = invoke("inspect", drawn)
    assert "grid 8 x 8" in output
    assert "classes: bald, black" in output


def _heldout(run: Path) -> Any:
    from genkit.evaluation.images import evaluation_images

    return evaluation_images(str(run), genkit.inspect(run), None, (32, 32)).images


def test_a_prior_is_no_tokenizer_and_a_run_of_one_is_not_resumed_as_the_other(
    drawn: Path, trained: Path, tmp_path: Path
) -> None:
    for command in (["encode", drawn, "x"], ["reconstruct", drawn, "x.png"], ["export", drawn]):
        code, output = invoke(*command, "--out", tmp_path / "x.onnx")
        assert code == 1
        assert "holds a prior, not a tokenizer" in output
    code, output = invoke("train", "--resume", "--out", drawn)
    assert "is a run of genkit train-prior: resume it with that command" in output
    code, output = invoke("train-prior", "--resume", "--out", trained)
    assert "is a run of genkit train: resume it with that command" in output
    code, output = invoke("train-prior", "--resume", "--out", drawn)
    assert "is at step 60 already" in output


def test_the_nearest_training_image_is_found(drawn: Path, tmp_path: Path) -> None:
    code, output = invoke("sample", drawn, "--number", "3", "--nearest", "--out", tmp_path / "out")
    assert code == 0, output
    assert "mean squared distances from 0." in output
    with Image.open(tmp_path / "out" / "nearest.png") as picture:
        assert picture.size == (3 * 130 - 2, 2 * 130 - 2)
    split = _heldout(drawn)
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
