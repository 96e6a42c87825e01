"""Labels and captions of folders and faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from genkit_datasets import FacesOptions, FolderOptions
from genkit_datasets.faces import HAIR_COLOURS, LABELS, Faces
from genkit_datasets.folder import Folder
from genkit_datasets.labels import numbered
from PIL import Image

from genkit.settings import choose


def test_subfolders_are_classes_and_text_files_captions(photographs: Path) -> None:
    Image.new("RGB", (20, 20)).save(photographs / "alone.png")
    (photographs / "a" / "01.txt").write_text(" two \u00e9 dots\n", "utf-8")
    (photographs / "a" / "notes.txt").write_text("of no image")
    dataset = Folder(FolderOptions(location=str(photographs), crops=2), (16, 16), 0)
    assert dataset.classes == ["a", "b"]
    assert dataset.notes == ["Not read: 1 file of another ending (.txt)."]
    for name in ("train", "heldout", "all"):
        split = dataset.split(name)
        for index in range(len(split)):
            path = split.name(index).partition("#")[0]
            label = split.label(index)
            assert (None if label is None else split.classes[label]) == (
                path.split("/")[0] if "/" in path else None
            )
            assert split.caption(index) == ("two \u00e9 dots" if path == "a/01.png" else None)


def test_a_label_does_not_change_the_faces() -> None:
    plain = Faces(FacesOptions(), (32, 32), 3)
    for factor, names in LABELS.items():
        labelled = choose("dataset", {"name": "faces", "label": factor}).build((32, 32), 3)
        assert labelled.classes == names
        assert labelled.fingerprint == plain.fingerprint
        train, same = labelled.split("train"), plain.split("train")
        assert (train.images(range(8)) == same.images(range(8))).all()
        assert {train.label(index) for index in range(400)} == set(range(len(names)))
        assert same.label(0) is None
        assert same.classes == []


def test_the_label_hair_is_the_hair_that_is_drawn() -> None:
    """Under even light its colour appears above the brow, and nowhere if the face is bald."""
    options = FacesOptions(label="hair", light=0, noise=0, pose=0)
    faces = Faces(options, (64, 64), 0).split("train")
    for index in range(60):
        label = faces.label(index)
        assert label is not None
        above = faces.images([index])[0, 12:16, 28:36].reshape(-1, 3).astype(int)
        near = [np.abs(above - colour).max(1).min() < 6 for colour in HAIR_COLOURS]
        assert near[label - 1] if label else not any(near)


def test_labels_are_numbers_or_names() -> None:
    assert numbered([2, None, 0]) == (["0", "1", "2"], [2, None, 0])
    assert numbered(["dog", "cat", None]) == (["cat", "dog"], [1, 0, None])
    assert numbered([-1, 3]) == (["-1", "3"], [0, 1])
    assert numbered([10**9, "x"]) == (["1000000000", "x"], [0, 1])
    assert numbered([None]) == ([], [None])
