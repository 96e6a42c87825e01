"""What others gather images in: the formats of the library `datasets`, and tar shards."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import TINY, flags, genkit_command, invoke, same, tiny_run, weights
from genkit_datasets import HFOptions, ShardsOptions, genkit_dataset_for
from genkit_datasets.hf import HF
from genkit_datasets.shards import Shards
from PIL import Image

from genkit.data import read, read_varied
from genkit.errors import DataError, OptionError, UnreadableImage
from genkit.options import resolve, settings_of
from genkit.run import data_table, layered, resolve_run
from genkit.testing import check_dataset
from genkit.training.data import loader

COUNT = 24


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> Any:
        raise AssertionError(f"the network is asked for {args}")

    connect = socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # Workers hand their batches over through sockets that are files.
    monkeypatch.setattr(
        socket.socket,
        "connect",
        lambda own, to: connect(own, to) if own.family == socket.AF_UNIX else refuse(to),
    )


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, and no progress bars among their output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def png(number: int, size: tuple[int, int] = (12, 9)) -> bytes:
    """A plain picture that tells its number."""
    return encoded(Image.new("RGB", size, (number, 255 - number, 7)))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def numbers(dataset: Any) -> list[int]:
    """Which pictures a data set holds, by their colour."""
    return dataset.images(range(len(dataset)))[:, 0, 0, 0].tolist()


def table(first: int = 0, count: int = COUNT, columns: tuple[str, ...] = ("image",)) -> Any:
    """A data set of pictures from the number `first` on."""
    cells = [{"bytes": png(number), "path": None} for number in range(first, first + count)]
    features = {name: datasets.Image() for name in columns} | {"label": datasets.Value("int64")}
    content = dict.fromkeys(columns, cells) | {"label": list(range(count))}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in every format, and others to hold out."""
    root = tmp_path_factory.mktemp("places")
    train, test = table(), table(100, 6)
    (root / "parquet").mkdir()
    train.to_parquet(root / "parquet" / "train-00000.parquet")
    test.to_parquet(root / "parquet" / "test-00000.parquet")
    train.save_to_disk(root / "saved")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(root / "saved-splits")
    shutil.copy(root / "parquet" / "train-00000.parquet", root / "one.parquet")
    shutil.copy(next((root / "saved").glob("*.arrow")), root / "one.arrow")
    for number in range(COUNT):
        file = root / "images" / "train" / str(number % 2) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    for shard in range(3):
        each = COUNT // 3
        write_shard(root / f"a-{shard:02d}.tar", range(shard * each, (shard + 1) * each))
    write_shard(root / "b.tar", range(100, 106))
    return root


def write_shard(path: Path, pictures: Any) -> None:
    members = [(f"sub/{n:04d}.{end}", content) for n in pictures for end, content in sample(n)]
    write_tar(path, members)


def sample(number: int) -> list[tuple[str, bytes]]:
    return [("png", png(number)), ("json", b"{}"), ("cls", b"1")]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def hf(location: Path | str, which: str = "all", **options: Any) -> HF:
    return HF(HFOptions(location=str(location), **options), which, 8, 0)


def shards(location: Path | str, which: str = "all", **options: Any) -> Shards:
    return Shards(ShardsOptions(location=str(location), **options), which, 8, 0)


def in_tars(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Shards:
    write_tar(path, members)
    return shards(path, **options)


HF_PLACES = ["parquet", "saved", "saved-splits", "one.parquet", "one.arrow", "images"]
EVERY = [*(f"hf:{place}" for place in HF_PLACES), "a-{00..02}.tar"]


def at(location: str, places: Path) -> str:
    """A location among the tests' places."""
    scheme, colon, place = location.rpartition(":")
    return f"{scheme}{colon}{places / place}"


@pytest.mark.parametrize("location", [*EVERY, "hf:parquet?streaming=true&size=20"])
def test_they_keep_the_contract(location: str, places: Path) -> None:
    settings = data_table(at(location, places))
    check_dataset(settings.pop("name"), **settings)


@pytest.mark.parametrize("location", EVERY)
def test_every_image_is_there_and_in_order(location: str, places: Path) -> None:
    settings = data_table(at(location, places))
    name = settings.pop("name")
    kind, options = (HF, HFOptions) if name == "hf" else (Shards, ShardsOptions)
    order = list(range(COUNT))
    if "images" in location:
        order.sort(key=lambda number: number % 2)
    train, heldout, every = (
        kind(resolve(options, settings), split, 8, 0) for split in ("train", "heldout", "all")
    )
    assert numbers(every) == order
    assert sorted(numbers(train) + numbers(heldout)) == list(range(COUNT))
    assert len({every.name(index) for index in range(COUNT)}) == COUNT
    if name == "hf":
        assert every.name(5) == "train/000005"
    else:
        assert every.name(9) == "a-01.tar/sub/0009.png"


def test_a_location_says_which_data_set_reads_it_and_how(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places)
    assert genkit_dataset_for("hf:owner/name") == {"name": "hf", "location": "owner/name"}
    here = {"name": "hf", "location": str(places / "saved")}
    assert genkit_dataset_for("hf:saved") == genkit_dataset_for("hf:./saved") == here
    assert genkit_dataset_for("hf:./gone") == {"name": "hf", "location": str(places / "gone")}
    assert genkit_dataset_for("hf:owner/name?split=test&short-side=9") == {
        "name": "hf",
        "location": "owner/name",
        "split": "test",
        "short_side": "9",
    }
    assert genkit_dataset_for("a-{00..02}.tar") == {
        "name": "shards",
        "location": str(places / "a-{00..02}.tar"),
    }
    assert genkit_dataset_for("b.tar::{b,c}.tar?endings=jpg") == {
        "name": "shards",
        "location": f"{places / 'b.tar'}::{places / '{b,c}.tar'}",
        "endings": "jpg",
    }
    # A folder stays a folder, whatever it is called.
    for name in ("odd.tar", "what?split=test"):
        (tmp_path / name).mkdir()
        place = str(tmp_path / name)
        assert genkit_dataset_for(place) == {"name": "folder", "location": place}
    assert genkit_dataset_for("nowhere") is None


def test_no_place_of_this_machine_gets_into_a_model_file() -> None:
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
        dataset = chosen.data.build("train", chosen.resolution, chosen.seed)
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


def test_a_stream_gives_what_reading_gives_and_fetches_no_more(tmp_path: Path) -> None:
    table(0, 10).to_parquet(tmp_path / "train-00000.parquet")
    table(10, 10).to_parquet(tmp_path / "train-00001.parquet")
    mapped, stream = (hf(tmp_path, size=10, streaming=streaming) for streaming in (False, True))
    assert numbers(stream) == numbers(mapped) == list(range(10))
    assert stream.fingerprint == mapped.fingerprint
    assert [stream.name(i) for i in range(10)] == [mapped.name(i) for i in range(10)]
    # What lies behind the first ones is not looked at; what was fetched is not fetched again.
    (tmp_path / "train-00001.parquet").write_bytes(b"no parquet at all")
    assert numbers(hf(tmp_path, size=9, streaming=True)) == list(range(9))
    shutil.rmtree(tmp_path)
    assert sorted(
        n
        for split in ("train", "heldout")
        for n in numbers(hf(tmp_path, split, size=9, streaming=True))
    ) == list(range(9))


def test_the_same_images_have_one_fingerprint_wherever_they_lie(places: Path) -> None:
    rows = {hf(places / place).fingerprint for place in HF_PLACES if place != "images"}
    assert len(rows) == 1
    assert hf(places / "parquet", size=20).fingerprint not in rows
    assert hf(places / "parquet", "heldout").fingerprint in rows
    test = {"heldout_split": "test"}
    apart = {hf(places / "parquet", split, **test).fingerprint for split in ("heldout", "train")}
    assert len(apart) == 1
    assert not apart & rows


def test_images_that_were_held_out_by_others(places: Path) -> None:
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
    with pytest.raises(OptionError, match="both to be trained on and held out"):
        shards(pattern, heldout_shards=str(places / "a-01.tar"))


# Another value for each option, and what it needs beside it.
HF_OTHER: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "location": ("other", {}),
    "heldout": (0.5, {}),
    "split_seed": (1, {"heldout": 0.4}),
    "short_side": (20, {}),
    "crops": (3, {}),
    "flip": (False, {}),
    "background": ((0, 0, 0), {}),
    "subset": ("second", {"location": "subsets"}),
    "split": ("test", {}),
    "heldout_split": ("test", {}),
    "column": ("b", {"location": "two", "column": "a"}),
    "size": (10, {}),
}
SHARDS_OTHER: dict[str, tuple[Any, Mapping[str, Any]]] = {
    **{name: HF_OTHER[name] for name in list(HF_OTHER)[:7]},
    "location": ("other.tar", {}),
    "heldout_shards": ("other.tar", {}),
    "endings": ("b.png", {"endings": "a.png"}),
}


def half(number: int) -> bytes:
    """A picture that changes when it is mirrored, cropped elsewhere or laid on another colour."""
    image = Image.new("RGBA", (12, 9), (number, 9, 9, 99))
    image.paste((9, 9, number, 255), (0, 0, 5, 4))
    return encoded(image)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("choices")

    def rows(first: int, *columns: str) -> Any:
        cells = {
            name: [{"bytes": half(first + 40 * place + n), "path": None} for n in range(16)]
            for place, name in enumerate(columns)
        }
        features = datasets.Features({name: datasets.Image() for name in columns})
        return datasets.Dataset.from_dict(cells, features=features)

    for place in ("base", "other", "subsets", "two"):
        (root / place).mkdir()
    rows(0, "image").to_parquet(root / "base" / "train.parquet")
    rows(20, "image").to_parquet(root / "base" / "test.parquet")
    rows(30, "image").to_parquet(root / "other" / "train.parquet")
    rows(0, "a", "b").to_parquet(root / "two" / "train.parquet")
    for number, name in enumerate(("first", "second")):
        rows(50 * number, "image").to_parquet(root / "subsets" / f"{name}.parquet")
    (root / "subsets" / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: first\n  data_files: first.parquet\n  default: true\n"
        "- config_name: second\n  data_files: second.parquet\n---\n"
    )
    for name, first in (("base", 0), ("other", 50)):
        members = [
            (f"{n}.{end}.png", half(first + n + k)) for n in range(16) for k, end in enumerate("ab")
        ]
        write_tar(root / f"{name}.tar", members)
    return root


def looks(kind: Any, options: type, settings: Mapping[str, Any], choices: Path) -> tuple[Any, ...]:
    """All that comes out of a data set: its images, plain and varied, and their names."""
    full = {
        name: str(choices / value) if name in ("location", "heldout_shards") else value
        for name, value in settings.items()
    }
    result = []
    for split in ("train", "heldout", "all"):
        dataset = kind(resolve(options, full), split, 8, 0)
        every = range(len(dataset))
        result += [
            dataset.images(every).tobytes(),
            dataset.images(every, every).tobytes(),
            [dataset.name(index) for index in every],
        ]
    return tuple(result)


@pytest.mark.parametrize("option", HF_OTHER)
def test_an_option_of_hf(option: str, choices: Path) -> None:
    value, needs = HF_OTHER[option]
    base = {"location": "base", **needs}
    assert looks(HF, HFOptions, base, choices) != looks(
        HF, HFOptions, {**base, option: value}, choices
    )


@pytest.mark.parametrize("option", SHARDS_OTHER)
def test_an_option_of_shards(option: str, choices: Path) -> None:
    value, needs = SHARDS_OTHER[option]
    base = {"location": "base.tar", "endings": "a.png", **needs}
    assert looks(Shards, ShardsOptions, base, choices) != looks(
        Shards, ShardsOptions, {**base, option: value}, choices
    )


def test_no_option_is_left_out_above() -> None:
    # How images are kept and fetched is no matter of what they are; a revision is the hub's.
    assert {*HF_OTHER, "cache", "streaming", "revision"} == {*HFOptions.__dataclass_fields__}
    assert {*SHARDS_OTHER, "cache"} == {*ShardsOptions.__dataclass_fields__}


def test_images_are_kept_as_far_as_the_cache_reaches(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", range(8))
    kept, read_anew = shards(tmp_path / "a.tar"), shards(tmp_path / "a.tar", cache=0)
    assert numbers(kept) == numbers(read_anew)
    (tmp_path / "a.tar").unlink()
    assert numbers(kept) == list(range(8))
    with pytest.raises(UnreadableImage, match="No such file"):
        read_anew.images([0])


def test_the_column_of_images_is_found_or_named(tmp_path: Path) -> None:
    table(columns=("a", "b")).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(
        OptionError, match=r"several columns .* name one of a, b with --data.column"
    ):
        hf(tmp_path / "two.parquet")
    assert numbers(hf(tmp_path / "two.parquet", column="b")) == list(range(COUNT))
    plain = datasets.Dataset.from_dict({"data": [png(n) for n in range(5)], "label": [*range(5)]})
    plain.cast_column("data", datasets.Value("binary")).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(OptionError, match="is said to hold images; its columns: data, label"):
        hf(tmp_path / "plain.parquet")
    for streaming in (False, True):
        named = {"streaming": streaming, "size": 5}
        assert numbers(hf(tmp_path / "plain.parquet", column="data", **named)) == list(range(5))
        for wrong in ("label", "lable"):
            with pytest.raises(OptionError, match=f"no column '{wrong}' of images; its columns:"):
                hf(tmp_path / "plain.parquet", column=wrong, **named)


@pytest.mark.parametrize(
    ("place", "options", "kind", "message"),
    [
        ("", {}, DataError, "name it with --data hf:NAME_OR_PATH"),
        ("gone", {}, DataError, "there is no folder or file '.*gone'"),
        ("a-00.tar", {}, DataError, "no file that ends in .parquet or .arrow"),
        ("parquet", {"split": "val"}, OptionError, "Unknown split \"val\".*'train'"),
        ("parquet", {"split": "val", "streaming": True, "size": 3}, OptionError, "split: val"),
        ("parquet", {"subset": "x"}, OptionError, "'x' not found. Available: "),
        ("parquet", {"revision": "x"}, OptionError, "lies here and has no revision 'x'"),
        ("saved", {"heldout_split": "test"}, OptionError, "no split 'test'; it has train"),
        ("saved-splits", {"split": "val"}, OptionError, "no split 'val'; it has train, test"),
        ("saved", {"subset": "x"}, OptionError, "has no subsets"),
    ],
)
def test_what_is_not_there_is_named(
    place: str, options: dict[str, Any], kind: type[Exception], message: str, places: Path
) -> None:
    with pytest.raises(kind, match=message):
        hf(places / place if place else "", **options)


def test_options_that_cannot_be_together_are_refused() -> None:
    with pytest.raises(ValueError, match="streaming needs a size"):
        HFOptions(streaming=True)
    with pytest.raises(ValueError, match="another split"):
        HFOptions(split="test", heldout_split="test")
    with pytest.raises(ValueError, match="above 0"):
        ShardsOptions(heldout=0)


def test_damaged_files_of_data_sets_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    for options in ({}, {"streaming": True, "size": 3}):
        with pytest.raises(DataError, match=f"'{tmp_path}' cannot be read: .*magic bytes"):
            hf(tmp_path, **options)


def test_a_data_sets_code_is_not_run(places: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(places / "parquet", folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        hf(folder)
    assert not (tmp_path / "ran").exists()


def test_rows_that_cannot_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    cells = [{"bytes": png(n), "path": None} for n in range(8)]
    cells[2] = {"bytes": png(2)[:45], "path": None}
    cells[3] = {"bytes": None, "path": "https://example.org/3.png"}
    cells[4] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [*cells, None]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet", batch_size=99)
    for options in ({}, {"streaming": True, "size": 9}):
        dataset = hf(tmp_path / "rows.parquet", **options)
        assert read(dataset, range(9))[0] == [0, 1, 5, 6, 7]
        assert list(dataset.problems) == [f"train/{row:06d}" for row in (2, 3, 4, 8)]
        assert "it lies at https://example.org" in dataset.problems["train/000003"]
        assert dataset.problems["train/000008"] == "ValueError: the row holds no image"
        assert read_varied(dataset, [2, 0], [1, 2])[:, 0, 0, 0].tolist() == [5, 0]


def test_the_hub_out_of_reach_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("genkit_datasets.hf.try_once", lambda: False)
    for options in ({}, {"streaming": True, "size": 3}):
        with pytest.raises(DataError) as raised:
            hf("nobody/nothing", **options)
        assert str(raised.value) == (
            "'nobody/nothing' cannot be read: ConnectionError: Couldn't reach 'nobody/nothing' on "
            "the Hub (OfflineModeIsEnabled); images that are here already are read with "
            "--data hf:./FOLDER"
        )


def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no hub here: what stands for it is how the library answers."""
    asked = []
    hub = "hf://datasets/owner/name@main"

    def rows() -> Iterator[Any]:
        for number in range(5):
            yield {"image": {"path": f"{hub}/{number}.png", "bytes": None}}
        raise AssertionError("more is fetched than was asked for")

    def load_dataset(place: str, **how: Any) -> Any:
        asked.append((place, how))
        if how["revision"] == "gone":
            raise datasets.exceptions.DatasetNotFoundError("Revision 'gone' doesn't exist")
        features = datasets.Features({"image": datasets.Image()})
        return datasets.IterableDataset.from_generator(rows, features=features)

    def fetch(path: str, mode: str) -> Any:
        return io.BytesIO(png(int(Path(path).stem)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("fsspec.open", fetch)
    monkeypatch.setattr("genkit_datasets.hf.try_once", lambda: True)
    stream = {"streaming": True, "size": 5}
    chosen = hf("owner/name", subset="faces", split="val", revision="v1", **stream)
    assert numbers(chosen) == list(range(5))
    how = {"name": "faces", "revision": "v1", "split": "val", "streaming": True}
    assert asked == [("owner/name", how)]
    with pytest.raises(OptionError, match="Revision 'gone' doesn't exist"):
        hf("owner/name", revision="gone", **stream)
    # What lies here is never asked for.
    table().save_to_disk(tmp_path / "here")
    hf(tmp_path / "here")
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["datasets", "webdataset"])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    name: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"pip install 'genkit-vq\[{name}\]'"):
        hf(places / "saved") if name == "datasets" else shards(places / "b.tar")


def test_members_that_are_no_images_of_samples_are_passed_over(tmp_path: Path) -> None:
    members = [
        ("a/1.png", png(1)),
        ("a/._1.png", b"what a Mac leaves"),
        ("a/2.PNG", png(2)),
        ("a/notes.txt", b"text"),
        ("noending", b"text"),
        ("a.b/3.jpeg", encoded(Image.new("RGB", (12, 9), (200, 0, 0)), "JPEG")),
        ("a/1.png", png(4)),
    ]
    write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    dataset = shards(tmp_path / "a.tar")
    names = [dataset.name(index) for index in range(len(dataset))]
    assert names == ["a.tar/a/1.png", "a.tar/a/2.PNG", "a.tar/a.b/3.jpeg"]
    # The later member of a name counts, as where a tar file is unpacked.
    assert numbers(dataset)[:2] == [4, 2]


def test_long_names_and_names_that_are_no_text(tmp_path: Path) -> None:
    names = ["d" * 150 + "/" + "n" * 120 + ".png", "\udcff.png"]
    dataset = in_tars(tmp_path / "a.tar", [(name, png(n)) for n, name in enumerate(names)])
    assert numbers(dataset) == [0, 1]
    assert dataset.name(0) == f"a.tar/{names[0]}"
    assert all(dataset.name(index).encode() for index in range(2))


def test_samples_with_several_images_ask_which(tmp_path: Path) -> None:
    members = [
        (f"{n}.{end}", png(n + k)) for n in range(20) for k, end in enumerate(("in.png", "png"))
    ]
    with pytest.raises(OptionError, match=r"such as 0.in.png and 0.png: .* with --data.endings"):
        in_tars(tmp_path / "a.tar", members)
    assert numbers(shards(tmp_path / "a.tar", endings="png")) == list(range(1, 21))
    both = {"endings": "png, in.png", "heldout": 0.5}
    train, heldout = (
        {file.sample for file in shards(tmp_path / "a.tar", split, **both).files}
        for split in ("train", "heldout")
    )
    assert not train & heldout
    assert len(train | heldout) == 20
    with pytest.raises(
        DataError, match=r"no image that ends in jpg, but such that end in in.png, p"
    ):
        shards(tmp_path / "a.tar", endings="jpg")


def test_shards_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "x.tar", [number])
    dataset = shards(f"{tmp_path}/a/x.tar::{tmp_path}/{{b,a}}/x.tar")
    assert [dataset.name(i) for i in range(2)] == ["a/x.tar/sub/0000.png", "b/x.tar/sub/0001.png"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder in "ab":
        (tmp_path / folder).rename(moved / folder)
    assert shards(f"{moved}/{{a,b}}/x.tar").fingerprint == dataset.fingerprint


def test_damaged_shards_are_named(places: Path, tmp_path: Path) -> None:
    whole = (places / "a-00.tar").read_bytes()
    damaged = tmp_path / "damaged.tar"
    with tarfile.open(places / "a-00.tar") as tar:
        later = tar.getmembers()[9].offset
    cuts = {
        "in a member": whole[: later + 520],
        "in a header": whole[: later + 100],
        "overwritten": whole[:later] + b"x" * 512 + whole[later + 512 :],
        "no tar": b"this is text and no tar file" * 50,
        "empty": b"",
    }
    for case, content in cuts.items():
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"the shard '.*damaged.tar' cannot be read") as raised:
            shards(f"{places}/a-{{00..02}}.tar::{damaged}")
        assert str(raised.value).rpartition(": ")[2], case
    for suffix in ("tar.gz", "tar"):
        packed = tmp_path / f"packed.{suffix}"
        packed.write_bytes(gzip.compress(whole))
        assert data_table(str(packed))["name"] == "shards"
        with pytest.raises(DataError, match=f"packed.{suffix}' is compressed: uncompress it"):
            shards(packed)


def test_shards_that_are_not_there_are_named(places: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no shard '.*a-03.tar'"):
        shards(places / "a-{00..04}.tar")
    with pytest.raises(DataError, match="shards are read from here alone"):
        shards("https://example.org/a.tar")
    with pytest.raises(DataError, match="name them with --data"):
        shards("")
    with pytest.raises(DataError, match="holds no image"):
        in_tars(tmp_path / "none.tar", [("a.txt", b"text")])


def test_a_shard_cut_short_while_it_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", range(4))
    dataset = shards(tmp_path / "a.tar")
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(dataset.files[2].start + 5)
    assert read(dataset, range(4))[0] == [0, 1]
    assert dataset.problems["a.tar/sub/0002.png"] == "ValueError: the shard has been cut short"
    # What lies there now is looked at anew.
    write_shard(tmp_path / "a.tar", range(4, 7))
    assert numbers(shards(tmp_path / "a.tar")) == [4, 5, 6]


def test_training_with_two_workers_from_shards(places: Path, tmp_path: Path) -> None:
    """Real commands; the weights do not depend on who read the images."""
    pattern = str(places / "a-{00..02}.tar")
    tiny = flags({**TINY, "data": {"heldout": 0.2}, "steps": 4})
    done = genkit_command(
        "train", "--data", pattern, "--workers", "2", *tiny, "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert str(places) not in json.dumps(
        json.loads(invoke("inspect", tmp_path / "run", "--json")[1])
    )
    tiny_run(tmp_path / "alone", {"data": {"name": pattern, "heldout": 0.2}, "steps": 4})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))
    # Another process knows the images again.
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
    # Another data set has columns and splits of its own.
    table(30, 5, columns=("picture",)).to_parquet(tmp_path / "other.parquet")
    code, text = invoke("evaluate", tmp_path / "run", "--data", f"hf:{tmp_path}/other.parquet")
    assert code == 0, text
    assert "5 images of hf" in text
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


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("hf://datasets/me/x/a.png", True),
        ("zip://a/b.png::hf://datasets/me/x/all.zip", True),
        ("ftp://elsewhere/a?x=hf://datasets/me/x", False),
        ("https://elsewhere/hf://", False),
        ("simplecache::hf://datasets/me/x/a.png", False),
        ("hf://datasets/me/x/a.zip::https://elsewhere", False),
    ],
)
def test_only_files_of_the_hub_are_asked_for(place: str, asked: bool) -> None:
    from genkit_datasets.hf import _HUB

    assert bool(_HUB.fullmatch(place)) == asked
