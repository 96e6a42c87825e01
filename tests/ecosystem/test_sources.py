"""Data sets in the formats of other tools: every format gives the same images."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, flags, genkit_here, invoke, same, tiny_run, weights
from genkit_datasets import HFOptions, ShardsOptions, _settings_at
from genkit_datasets.hf import HF
from genkit_datasets.shards import Shards
from pictures import COUNT, EVERY, HF_PLACES, at, hf, numbers, shards, table, write_shard

from genkit.data.loader import loader
from genkit.errors import DataError, OptionError, UnreadableImage
from genkit.run.options import layered, resolve_run
from genkit.settings import data_table, resolve, settings_of
from genkit.testing import check_dataset


@pytest.mark.parametrize("location", [*EVERY, "hf:parquet?streaming=true&size=20"])
def test_they_satisfy_the_contract(location: str, places: Path) -> None:
    settings = data_table(at(location, places))
    check_dataset(settings.pop("name"), **settings)


@pytest.mark.parametrize("location", EVERY)
def test_every_image_is_read_in_order(location: str, places: Path) -> None:
    settings = data_table(at(location, places))
    name = settings.pop("name")
    kind, options = (HF, HFOptions) if name == "hf" else (Shards, ShardsOptions)
    order = list(range(COUNT))
    if "images" in location:
        order.sort(key=lambda number: number % 2)
    whole = kind(resolve(options, settings), (8, 8), 0)
    train, heldout, every = (whole.split(split) for split in ("train", "heldout", "all"))
    assert numbers(every) == order
    assert sorted(numbers(train) + numbers(heldout)) == list(range(COUNT))
    assert len({every.name(index) for index in range(COUNT)}) == COUNT
    if name == "hf":
        assert every.name(5) == "train/000005"
    else:
        assert every.name(9) == "a-01.tar/sub/0009.png"


def test_a_location_selects_the_data_set_and_its_options(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places)
    assert _settings_at("hf:owner/name") == {"name": "hf", "location": "owner/name"}
    here = {"name": "hf", "location": str(places / "saved")}
    assert _settings_at("hf:saved") == _settings_at("hf:./saved") == here
    assert _settings_at("hf:./gone") == {"name": "hf", "location": str(places / "gone")}
    assert _settings_at("hf:owner/name?split=test&short-side=9") == {
        "name": "hf",
        "location": "owner/name",
        "split": "test",
        "short_side": "9",
    }
    assert _settings_at("a-{00..02}.tar") == {
        "name": "shards",
        "location": str(places / "a-{00..02}.tar"),
    }
    assert _settings_at("b.tar::{b,c}.tar?endings=jpg") == {
        "name": "shards",
        "location": f"{places / 'b.tar'}::{places / '{b,c}.tar'}",
        "endings": "jpg",
    }
    # An existing folder is read as a folder, whatever its name.
    for name in ("odd.tar", "what?split=test"):
        (tmp_path / name).mkdir()
        place = str(tmp_path / name)
        assert _settings_at(place) == {"name": "folder", "location": place}
    assert _settings_at("nowhere") is None


def test_no_local_path_is_saved_in_a_model_file() -> None:
    for options in (HFOptions(location="/secret", column="x"), ShardsOptions(location="/secret")):
        kept = settings_of(options, local=False)
        assert not kept.keys() & {"location", "split", "column", "heldout_shards"}
        assert {"heldout", "crops"} <= kept.keys()


@pytest.mark.parametrize("location", ["hf:parquet?heldout_split=test", "a-{00..02}.tar?"])
def test_processes_and_workers_see_every_image_once_an_epoch(location: str, places: Path) -> None:
    settings = data_table(at(location, places))
    if settings["name"] == "shards":
        settings["heldout_shards"] = str(places / "b.tar")
    run = {"data": settings, "resolution": 8, "batch_size": 2, "steps": 2 * COUNT // 4}
    for workers in (0, 2):
        chosen = resolve_run(layered(None, {**run, "workers": workers}))
        dataset = chosen.data.build(chosen.size, chosen.seed).split("train")
        assert len(dataset) == COUNT
        seen = [
            [batch[:, 0, 0, 0].tolist() for batch, _ in loader(chosen, dataset, process, 2, 0)]
            for process in range(2)
        ]
        half = chosen.steps // 2
        for epoch in (slice(None, half), slice(half, None)):
            drawn = [n for process in seen for batch in process[epoch] for n in batch]
            assert sorted(drawn) == list(range(COUNT))
        assert seen[0][:half] != seen[0][half:]
        resumed = [b[:, 0, 0, 0].tolist() for b, _ in loader(chosen, dataset, 1, 2, 5)]
        assert resumed == seen[1][5:]


def test_a_stream_gives_the_same_images_and_fetches_no_more(tmp_path: Path) -> None:
    table(0, 10).to_parquet(tmp_path / "train-00000.parquet")
    table(10, 10).to_parquet(tmp_path / "train-00001.parquet")
    mapped, stream = (hf(tmp_path, size=10, streaming=streaming) for streaming in (False, True))
    assert numbers(stream) == numbers(mapped) == list(range(10))
    assert stream.fingerprint == mapped.fingerprint
    assert [stream.name(i) for i in range(10)] == [mapped.name(i) for i in range(10)]
    # Images after the first ones are not read, and fetched ones are not fetched again.
    (tmp_path / "train-00001.parquet").write_bytes(b"no parquet at all")
    fetched = hf(tmp_path, size=9, streaming=True)
    assert numbers(fetched) == list(range(9))
    shutil.rmtree(tmp_path)
    splits = [fetched.dataset.split(name) for name in ("train", "heldout")]
    assert sorted(n for split in splits for n in numbers(split)) == list(range(9))


def test_the_fingerprint_does_not_depend_on_the_location(places: Path) -> None:
    rows = {hf(places / place).fingerprint for place in HF_PLACES if place != "images"}
    assert len(rows) == 1
    assert hf(places / "parquet", size=20).fingerprint not in rows
    assert hf(places / "parquet", "heldout").fingerprint in rows
    test = {"heldout_split": "test"}
    apart = {hf(places / "parquet", split, **test).fingerprint for split in ("heldout", "train")}
    assert len(apart) == 1
    assert not apart & rows


def test_existing_held_out_splits(places: Path) -> None:
    for options in ({}, {"streaming": True, "size": 50}):
        train, heldout = (
            hf(places / "parquet", split, heldout_split="test", **options)
            for split in ("train", "heldout")
        )
        assert numbers(train) == list(range(COUNT))
        assert numbers(heldout) == list(range(100, 106))
        assert heldout.name(0) == "test/000000"
    pattern, apart = places / "a-{00..02}.tar", str(places / "b.tar")
    train, other = (shards(pattern, s, heldout_shards=apart) for s in ("train", "heldout"))
    assert numbers(train) == list(range(COUNT))
    assert numbers(other) == list(range(100, 106))
    assert train.fingerprint == other.fingerprint != shards(pattern).fingerprint
    with pytest.raises(OptionError, match="in both the training set and the held-out set"):
        shards(pattern, heldout_shards=str(places / "a-01.tar"))


# Another value for each option, and the other settings that it needs.


def test_images_are_kept_up_to_the_cache_size(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", range(8))
    kept, read_anew = shards(tmp_path / "a.tar"), shards(tmp_path / "a.tar", cache=0)
    assert numbers(kept) == numbers(read_anew)
    (tmp_path / "a.tar").unlink()
    assert numbers(kept) == list(range(8))
    with pytest.raises(UnreadableImage, match="No such file"):
        read_anew.images([0])


@pytest.mark.parametrize("name", ["datasets", "webdataset"])
def test_a_missing_library_is_named_with_its_extra(
    name: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"pip install 'genkit-vq\[{name}\]'"):
        hf(places / "saved") if name == "datasets" else shards(places / "b.tar")


def test_training_with_two_workers_from_shards(places: Path, tmp_path: Path) -> None:
    """The weights do not depend on the number of workers."""
    pattern = str(places / "a-{00..02}.tar")
    tiny = flags({**TINY, "data": {"heldout": 0.2}, "steps": 4})
    done = genkit_here(
        "train", "--data", pattern, "--workers", "2", *tiny, "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert str(places) not in json.dumps(
        json.loads(invoke("inspect", tmp_path / "run", "--json")[1])
    )
    tiny_run(tmp_path / "alone", {"data": {"name": pattern, "heldout": 0.2}, "steps": 4})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))
    # Another process computes the same fingerprint.
    report = json.loads(invoke("evaluate", tmp_path / "run", "--data", pattern, "--json")[1])
    assert report["protocol"]["split"] == "heldout"
    assert report["images"] == len(shards(pattern, "heldout", heldout=0.2))


def test_commands_read_data_sets_of_the_library(places: Path, tmp_path: Path) -> None:
    place = f"hf:{places / 'parquet'}"
    tiny_run(tmp_path / "run", {"data": {"name": place, "heldout_split": "test"}, "steps": 2})
    report = json.loads(invoke("evaluate", tmp_path / "run", "--json")[1])
    assert (report["protocol"]["split"], report["images"]) == ("heldout", 6)
    again = json.loads(invoke("evaluate", tmp_path / "run", "--data", place, "--json")[1])
    assert again == report
    # Another data set has its own columns and splits.
    table(30, 5, columns=("picture",)).to_parquet(tmp_path / "other.parquet")
    code, text = invoke("evaluate", tmp_path / "run", "--data", f"hf:{tmp_path}/other.parquet")
    assert code == 0, text
    assert "5 images of other.parquet" in text
    tokens = tmp_path / "tokens.safetensors"
    location = f"{place}?split=test&streaming=true&size=4"
    code, text = invoke("encode", tmp_path / "run", location, "--out", tokens)
    assert code == 0, text
    from safetensors import safe_open

    with safe_open(tokens, "np") as file:
        assert len(file.get_tensor("level0")) == 4
    code, text = invoke("encode", tmp_path / "run", f"{place}?spilt=test", "--out", tokens)
    assert (code, "Did you mean 'split'" in text) == (2, True)
    assert np.isfinite(report["psnr"])
