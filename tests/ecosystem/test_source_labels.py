"""Labels and captions from columns of `datasets` and from samples in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from pictures import hf, in_tars, png, shards, write_tar

from genkit.errors import OptionError


def labels(split: Any) -> list[int | None]:
    return [split.label(index) for index in range(len(split))]


def captions(split: Any) -> list[str | None]:
    return [split.caption(index) for index in range(len(split))]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    kinds = {
        "image": datasets.Image(),
        "kind": datasets.ClassLabel(names=["dog", "cat"]),
        "place": datasets.Value("string"),
        "vector": datasets.Sequence(datasets.Value("float32")),
    }
    content = {
        "image": [{"bytes": png(n), "path": None} for n in range(6)],
        "kind": [0, 1, None, 1, 0, 1],
        "place": ["sea", "air", "sea", None, "sea", "air"],
        "vector": [[0.5]] * 6,
    }
    table = datasets.Dataset.from_dict(content, features=datasets.Features(kinds))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "options", [{}, {"streaming": True, "size": 6}, {"label": "kind", "crops": 1}]
)
def test_the_only_class_label_column_has_the_labels(rows: Path, options: Any) -> None:
    split = hf(rows / "parquet", **options)
    assert split.classes == ["dog", "cat"]
    assert labels(split) == [0, 1, None, 1, 0, 1]
    assert captions(split) == [None] * 6


def test_other_columns_are_named(rows: Path) -> None:
    split = hf(rows / "saved", label="place", caption="place")
    assert split.classes == ["air", "sea"]
    assert labels(split) == [1, 0, 1, None, 1, 0]
    assert captions(split) == ["sea", "air", "sea", None, "sea", "air"]
    assert split.fingerprint == hf(rows / "saved").fingerprint
    with pytest.raises(OptionError, match="has no column 'gone'; its columns: image, kind"):
        hf(rows / "saved", label="gone")
    with pytest.raises(OptionError, match=r"the column 'vector' of .* not labels"):
        hf(rows / "saved", label="vector")
    with pytest.raises(OptionError, match=r"the column 'kind' of .* not captions"):
        hf(rows / "saved", caption="kind")


def test_samples_have_labels_and_captions(tmp_path: Path) -> None:
    members = [
        ("a/0.png", png(0)),
        ("a/0.cls", b"2\n"),
        ("a/0.txt", "\u00e9 first ".encode()),
        ("a/0.json", b'{"label": 1, "caption": "of json"}'),
        ("a/1.png", png(1)),
        ("a/1.json", b'{"label": 1, "caption": "of json", "kind": 0, "text": "other"}'),
        ("a/2.png", png(2)),
        ("a/2.json", b"{broken"),
        ("a/3.png", png(3)),
    ]
    split = in_tars(tmp_path / "a.tar", members)
    assert split.classes == ["0", "1", "2"]
    assert labels(split) == [2, 1, None, None]
    assert captions(split) == ["\u00e9 first", "of json", None, None]
    other = shards(tmp_path / "a.tar", label="kind", caption="text")
    assert labels(other) == [2, 0, None, None]
    assert captions(other) == ["\u00e9 first", "other", None, None]
    assert other.fingerprint == split.fingerprint


def test_samples_may_have_names_of_classes(tmp_path: Path) -> None:
    members = [
        (f"{n}.{end}", content)
        for n, name in enumerate(["dog", "cat", "dog"])
        for end, content in (("png", png(n)), ("json", f'{{"label": "{name}"}}'.encode()))
    ]
    write_tar(tmp_path / "b.tar", members)
    split = shards(tmp_path / "b.tar")
    assert (split.classes, labels(split)) == (["cat", "dog"], [1, 0, 1])
