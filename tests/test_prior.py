"""Priors by a tiny one: training, its options, files, conditions, figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Silent, invoke, rows, same, weights
from PIL import Image
from safetensors.torch import save_file
from table import QUICK, heldout_of
from tasks import prior_run

import genkit
from genkit.errors import CheckpointError, DataError, GenkitError, OptionError, TrainingError
from genkit.layout import Grid, Layout
from genkit.training.loop import train
from genkit.training.prior import PriorTask

pytestmark = pytest.mark.usefixtures("tables")


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
    assert train(PriorTask, run, out, Silent(), resume=True) == 0
    assert train(PriorTask, run, tmp_path / "whole", Silent()) == 0
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
    tokenizer = genkit.evaluate(drawn / "tokenizer.safetensors", data=heldout_of(drawn))
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


def test_a_failed_step_of_a_prior_is_replayed(trained: Path, tmp_path: Path) -> None:
    wild = {**QUICK, "lr": 1e38, "clip": 0, "max_skipped": 3}
    with pytest.raises(TrainingError, match="genkit replay"):
        genkit.train_prior(trained, wild, out=tmp_path / "run")
    code, output = invoke("replay", tmp_path / "run")
    assert code == 0, output
    assert "fails again. Not finite: " in output
