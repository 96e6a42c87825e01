"""Data sets of the library `datasets`, readable and unreadable."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
from genkit_datasets import HFOptions, ShardsOptions
from pictures import COUNT, hf, numbers, png, table

from genkit.data.cache import ImageCache
from genkit.data.loader import loader
from genkit.data.reading import read, read_varied
from genkit.errors import DataError, OptionError, UnreadableImage
from genkit.run.options import layered, resolve_run
from genkit.settings import data_table


def test_the_column_of_images_is_found_or_named(tmp_path: Path) -> None:
    table(columns=("a", "b")).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(
        OptionError, match=r"several columns .* name one of a, b with --data.column"
    ):
        hf(tmp_path / "two.parquet")
    assert numbers(hf(tmp_path / "two.parquet", column="b")) == list(range(COUNT))
    plain = datasets.Dataset.from_dict({"data": [png(n) for n in range(5)], "label": [*range(5)]})
    plain.cast_column("data", datasets.Value("binary")).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(OptionError, match="has the type Image; its columns: data, label"):
        hf(tmp_path / "plain.parquet")
    for streaming in (False, True):
        named = {"streaming": streaming, "size": 5}
        assert numbers(hf(tmp_path / "plain.parquet", column="data", **named)) == list(range(5))
        for wrong, told in (
            ("label", "the column 'label' of '.*' holds values of type int64, not images"),
            ("lable", "has no column 'lable'; its columns: data, label"),
        ):
            with pytest.raises(OptionError, match=told):
                hf(tmp_path / "plain.parquet", column=wrong, **named)


@pytest.mark.parametrize(
    ("place", "options", "kind", "message"),
    [
        ("", {}, DataError, "name one with --data hf:NAME_OR_PATH"),
        ("gone", {}, DataError, "the folder or file '.*gone' does not exist"),
        ("a-00.tar", {}, DataError, "is neither a folder nor a .parquet or .arrow file"),
        ("parquet", {"split": "val"}, OptionError, "Unknown split \"val\".*'train'"),
        ("parquet", {"split": "val", "streaming": True, "size": 3}, OptionError, "split: val"),
        ("parquet", {"subset": "x"}, OptionError, "'x' not found. Available: "),
        (
            "parquet",
            {"revision": "x"},
            OptionError,
            "is local and has no revisions: leave out revision 'x'",
        ),
        ("saved", {"heldout_split": "test"}, OptionError, "no split 'test'; it has train"),
        ("saved-splits", {"split": "val"}, OptionError, "no split 'val'; it has train, test"),
        ("saved", {"subset": "x"}, OptionError, "has no subsets"),
    ],
)
def test_missing_parts_are_named(
    place: str, options: dict[str, Any], kind: type[Exception], message: str, places: Path
) -> None:
    with pytest.raises(kind, match=message):
        hf(places / place if place else "", **options)


def test_conflicting_options_are_refused() -> None:
    with pytest.raises(ValueError, match="streaming needs a size"):
        HFOptions(streaming=True)
    with pytest.raises(ValueError, match="must differ from split"):
        HFOptions(split="test", heldout_split="test")
    with pytest.raises(ValueError, match="above 0"):
        ShardsOptions(heldout=0)


def test_damaged_files_of_data_sets_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    for options in ({}, {"streaming": True, "size": 3}):
        with pytest.raises(DataError, match=f"'{tmp_path}' cannot be read: .*magic bytes"):
            hf(tmp_path, **options)


def test_code_in_a_data_set_is_not_run(places: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(places / "parquet", folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        hf(folder)
    assert not (tmp_path / "ran").exists()


def test_unreadable_rows_are_named_and_skipped(tmp_path: Path) -> None:
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
        assert "not stored locally but at https://example.org" in dataset.problems["train/000003"]
        assert dataset.problems["train/000008"] == "the row has no image"
        assert read_varied(dataset, [2, 0], [1, 2])[:, 0, 0, 0].tolist() == [5, 0]


def test_an_unreachable_hub_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("genkit_datasets.hf.one_attempt", lambda: nullcontext(False))
    for options in ({}, {"streaming": True, "size": 3}):
        with pytest.raises(DataError) as raised:
            hf("nobody/nothing", **options)
        assert str(raised.value) == (
            "'nobody/nothing' cannot be read: the hub cannot be reached: there is no connection; "
            "to read local images, use --data hf:./FOLDER"
        )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="it is turned off by HF_HUB_OFFLINE"):
        hf("nobody/nothing")


def test_a_hub_address_gets_the_right_spelling() -> None:
    location = data_table("hf://datasets/owner/name/train.parquet")["location"]
    with pytest.raises(OptionError, match=r"is named hf:OWNER/NAME: use --data hf:owner/name$"):
        hf(location)


def test_images_in_zip_files_are_read(tmp_path: Path) -> None:
    """Also by workers forked while the file is open, and after saving to disk."""
    folder = tmp_path / "zipped"
    folder.mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(12):
            archive.writestr(f"{number:02d}.png", png(number))
    dataset = hf(folder)
    assert numbers(dataset) == list(range(12))
    rows, columns = dataset.dataset.parts["train"]
    rows.save_to_disk(tmp_path / "saved")
    assert numbers(hf(tmp_path / "saved")) == list(range(12))
    assert hf(tmp_path / "saved").fingerprint == dataset.fingerprint
    settings = {"data": {**data_table(f"hf:{folder}"), "cache": 0}, "resolution": 8}
    run = resolve_run(layered(None, {**settings, "batch_size": 2, "steps": 6, "workers": 2}))
    train = run.data.build((8, 8), 0).split("train")
    seen = {n for batch, _ in loader(run, train, 0, 1, 0) for n in batch[:, 0, 0, 0].tolist()}
    assert seen == {*numbers(train)}
    dataset.dataset._kept = ImageCache(2, 0)
    elsewhere = {"path": "zip://0.png::https://elsewhere/a.zip", "bytes": None}
    dataset.dataset.parts["train"] = [{"image": elsewhere}], columns
    with pytest.raises(UnreadableImage, match=r"locally but at zip://0\.png::https://elsewhere"):
        dataset.images([0])


def test_a_column_of_paths_is_read(tmp_path: Path) -> None:
    """Absolute paths, and paths relative to the data set."""
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(number))
    paths = ["pictures/0.png", *(str(tmp_path / f"pictures/{n}.png") for n in (1, 2, 3))]
    rows = datasets.Dataset.from_dict({"picture": paths, "labels": [[1]] * 4})
    rows.to_parquet(tmp_path / "paths.parquet")
    assert numbers(hf(tmp_path / "paths.parquet", column="picture")) == [0, 1, 2, 3]
    with pytest.raises(OptionError, match=r"the column 'labels' of '.*' holds .*, not images"):
        hf(tmp_path / "paths.parquet", column="labels")


def test_a_run_below_its_data_changes_nothing(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    before = hf(tmp_path).fingerprint
    (tmp_path / "runs" / "hf" / "samples").mkdir(parents=True)
    (tmp_path / "runs" / "hf" / "samples" / "step-000004.png").write_bytes(png(99))
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / "runs" / "hf" / name).write_text("")
    assert numbers(hf(tmp_path)) == list(range(6))
    assert hf(tmp_path).fingerprint == before


def test_requests_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a hub: the library's answers are simulated."""
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
    monkeypatch.setattr("genkit_datasets.hf.one_attempt", lambda: nullcontext(True))
    stream = {"streaming": True, "size": 5}
    chosen = hf("owner/name", subset="faces", split="val", revision="v1", **stream)
    assert numbers(chosen) == list(range(5))
    how = {"name": "faces", "revision": "v1", "split": "val", "streaming": True}
    assert asked == [("owner/name", how)]
    with pytest.raises(OptionError, match="Revision 'gone' doesn't exist"):
        hf("owner/name", revision="gone", **stream)
    # Local data cause no request.
    table().save_to_disk(tmp_path / "here")
    hf(tmp_path / "here")
    assert len(asked) == 2


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
def test_only_files_on_the_hub_are_requested(place: str, asked: bool) -> None:
    from genkit_datasets.hf import _HUB

    assert bool(_HUB.fullmatch(place)) == asked
