"""Folders of images: which files are read, and how they are split and cropped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from PIL import Image

from genkit import Subset
from genkit.data.reading import batches, read, read_varied
from genkit.errors import DataError, UnreadableImage
from genkit.settings import data_table

RED = (200, 30, 40)


def folder(location: Path, split: str = "all", resolution: int = 16, **options: Any) -> Subset:
    size = resolution, resolution
    return Folder(FolderOptions(location=str(location), **options), size, 0).split(split)


def names(split: Subset) -> list[str]:
    return [split.name(index) for index in range(len(split))]


def test_hidden_files_and_folders_are_left_out(photographs: Path) -> None:
    for name in (".ipynb_checkpoints/1.png", "__MACOSX/1.png", ".hidden.png"):
        (photographs / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(photographs / name)
    (photographs / "a" / "._01.png").write_bytes(b"what a Mac leaves")
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert not dataset.problems
    assert not dataset.dataset.notes


def test_genkits_own_pictures_are_not_data(photographs: Path) -> None:
    """Neither a run anywhere below the folder nor one in the folder itself."""
    fingerprint = folder(photographs).fingerprint
    for place in ("runs/folder", "a/deep/mine", ""):
        run = photographs / place
        (run / "samples").mkdir(parents=True)
        (run / "config.toml").write_text("")
        (run / "metrics.jsonl").write_text("")
        Image.new("RGB", (20, 20)).save(run / "samples" / "step-000004.png")
    assert folder(photographs).fingerprint == fingerprint
    # The pictures can still be read if `--data` names their folder.
    assert len(folder(photographs / "samples")) == 1


def test_the_order_of_the_file_system_does_not_matter(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a link to it hold the same files; the first name counts."""
    (photographs / "z").symlink_to(photographs / "a")
    walk, found = os.walk, []
    for reverse in (False, True):

        def listed(*args: Any, reverse: bool = reverse, **more: Any) -> Any:
            for place, folders, names in walk(*args, **more):
                folders.sort(reverse=reverse)
                yield place, folders, sorted(names, reverse=reverse)

        monkeypatch.setattr(os, "walk", listed)
        dataset = folder(photographs, "heldout", heldout=0.4)
        found.append((dataset.fingerprint, names(dataset)))
    assert found[0] == found[1]
    assert not any(name.startswith("z") for name in found[0][1])


def test_a_folder_that_cannot_be_listed_is_named(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(place: str) -> Any:
        if os.fspath(place).endswith("c"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    dataset = folder(photographs)
    assert len(dataset) == 6
    assert dataset.problems == {os.path.join("b", "c"): "it cannot be listed: Permission denied"}


def test_files_with_other_endings_are_reported(photographs: Path) -> None:
    for number in range(3):
        (photographs / f"{number}.heic").write_bytes(b"")
        (photographs / f"noending{number}").write_bytes(b"")
    assert folder(photographs).dataset.notes == [
        "Not read: 6 files of other endings (.heic, none)."
    ]


@pytest.mark.parametrize("command", ["encode", "evaluate", "reconstruct"])
def test_commands_name_files_with_other_endings(
    command: str, trained: Path, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "0.heic").write_bytes(b"")
    data = ["--data", photographs] if command == "evaluate" else [photographs]
    ends = {"encode": "a.safetensors", "evaluate": "a.json", "reconstruct": "pictures"}
    code, output = invoke(command, trained, *data, "--out", tmp_path / ends[command])
    assert code == 0, output
    assert output.count("Not read: 1 file of another ending (.heic).") == 1


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "it holds no files"),
        (["a.heic"], r"it holds 1 file of another ending \(.heic\)"),
        (["a.tar", "b.tar"], r"to read tar files, use a pattern: --data '.*/\*.tar'"),
        (["a.parquet"], "to read a Hugging Face data set, use --data hf:"),
        (["a.zip"], "unpack the zip files, or read them with --data hf:"),
    ],
)
def test_the_contents_of_a_folder_without_images_are_reported(
    names: list[str], told: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=told):
        folder(tmp_path)


def test_names_are_shown_without_control_characters(photographs: Path) -> None:
    for name in ("a\nb.png", "\x1b[31mred.png", "\u202egnp.x.png", "caf\u00e9 \U0001f600.png"):
        (photographs / name).write_bytes(b"x")
    assert set(folder(photographs).problems) == {
        r"a\nb.png",
        r"\x1b[31mred.png",
        r"\u202egnp.x.png",
        "caf\u00e9 \U0001f600.png",
    }


def test_larger_images_are_read_on_request(photographs: Path) -> None:
    Image.new("RGB", (100, 50)).save(photographs / "large.png")
    dataset = folder(photographs, max_pixels=60 * 48)
    assert list(dataset.problems) == ["large.png"]
    assert "100 x 50 pixels; the limit is --data.max-pixels 2880" in dataset.problems["large.png"]
    assert len(folder(photographs, max_pixels=5000)) == 13


def test_headers_are_read_once_for_all_splits(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit_datasets.folder as module

    read_headers, check = [], module.check_header
    monkeypatch.setattr(
        module, "check_header", lambda *args: (read_headers.append(args[0].name), check(*args))
    )
    whole = Folder(FolderOptions(location=str(photographs)), (16, 16), 0)
    for split in ("train", "heldout", "all"):
        assert whole.split(split).fingerprint == whole.fingerprint
    assert len(read_headers) == 12


def test_the_home_directory_may_be_written_as_a_tilde(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photographs))
    assert data_table("~/a") == {"name": "folder", "location": str(photographs / "a")}
    options = FolderOptions(location="~/a", heldout_folder="~/b")
    whole = Folder(options, (16, 16), 0)
    assert (len(whole.split("train")), len(whole.split("heldout"))) == (6, 6)


def test_folders_with_the_same_file_names_are_distinguished(
    photographs: Path, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(photographs, other)
    assert folder(other).fingerprint == folder(photographs).fingerprint
    Image.new("RGB", (60, 48)).save(next(other.rglob("*.png")))
    assert folder(other).fingerprint != folder(photographs).fingerprint


def test_unreadable_files_are_named_and_skipped(photographs: Path) -> None:
    (photographs / "empty.png").write_bytes(b"")
    (photographs / "text.jpg").write_text("not a picture")
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert set(dataset.problems) == {"empty.png", "text.jpg"}


def test_a_truncated_file_is_skipped_when_it_is_read(photographs: Path) -> None:
    victim = photographs / "a" / "01.png"
    victim.write_bytes(victim.read_bytes()[:-800])
    dataset = folder(photographs)
    index = names(dataset).index(os.path.join("a", "01.png"))
    kept, images = read(dataset, range(12))
    assert len(kept) == len(images) == 11
    assert index not in kept
    assert list(dataset.problems) == [os.path.join("a", "01.png")]
    # Training uses the next image instead.
    varied = read_varied(folder(photographs), [index, 0], [1, 2])
    assert varied.shape == (2, 16, 16, 3)
    assert (
        sum(len(batch) for _, batch in batches(folder(photographs), 99, 5, torch.device("cpu")))
        == 11
    )


@pytest.mark.parametrize("content", [None, "text"])
def test_a_folder_without_images_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "x.png").write_text(content)
    with pytest.raises(DataError, match="no image can be read in"):
        folder(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the image folder '"):
        folder(tmp_path / "nowhere")


def test_the_split_is_by_file_and_stable(photographs: Path) -> None:
    train, heldout = (
        folder(photographs, "train", heldout=0.3),
        folder(photographs, "heldout", heldout=0.3),
    )
    assert set(names(train)) | set(names(heldout)) == set(names(folder(photographs)))
    assert not set(names(train)) & set(names(heldout))
    assert names(folder(photographs, "heldout", heldout=0.3)) == names(heldout)
    assert names(folder(photographs, "heldout", heldout=0.3, split_seed=1)) != names(heldout)
    # Adding a file does not move the existing ones.
    Image.new("RGB", (20, 20)).save(photographs / "new.png")
    assert set(names(heldout)) - {"new.png"} == set(
        names(folder(photographs, "heldout", heldout=0.3))
    ) - {"new.png"}


def test_at_least_one_file_is_held_out_and_one_trained_on(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.png")
    assert (
        len(folder(tmp_path, "heldout", heldout=0.01))
        == len(folder(tmp_path, "train", heldout=0.01))
        == 1
    )
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="only one readable image"):
        folder(tmp_path, "heldout")


def test_training_crops_vary_with_the_seed(photographs: Path) -> None:
    dataset = folder(photographs, resolution=16, short_side=32)
    crops = dataset.images([0] * 8, range(8))
    assert len({crop.tobytes() for crop in crops}) > 4
    assert (dataset.images([0] * 8, range(8)) == crops).all()


def test_held_out_images_can_have_several_crops(photographs: Path) -> None:
    one, four = folder(photographs), folder(photographs, crops=4)
    assert len(four) == 4 * len(one)
    assert (four.images([4]) == one.images([1])).all()
    assert len({crop.tobytes() for crop in four.images(range(4))}) == 4
    assert four.name(5) == f"{one.name(1)}#1"
    assert len(folder(photographs, "train", crops=4)) + len(folder(photographs, "heldout")) == len(
        one
    )


def test_decoded_images_are_kept_up_to_the_cache_size(photographs: Path) -> None:
    kept, read_anew = folder(photographs), folder(photographs, cache=0)
    before = kept.images(range(12), range(12))
    assert (read_anew.images(range(12), range(12)) == before).all()
    for file in photographs.rglob("*.png"):
        file.unlink()
    assert (kept.images(range(12), range(12)) == before).all()
    with pytest.raises(UnreadableImage):
        read_anew.images([0])


def test_flips_can_be_disabled(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    picture.paste(RED, (0, 0, 8, 16))
    picture.save(tmp_path / "half.png")
    left = [bool(image[8, 2, 0] > 100) for image in folder(tmp_path).images([0] * 20, range(20))]
    assert 3 < sum(left) < 17
    assert all(
        image[8, 2, 0] > 100 for image in folder(tmp_path, flip=False).images([0] * 20, range(20))
    )


def test_a_file_name_that_is_not_text(photographs: Path) -> None:
    strange = os.path.join(os.fsencode(photographs), b"\xff\xfe.png")
    try:
        with open(strange, "wb") as file:  # noqa: PTH123 (a path takes no bytes)
            Image.new("RGB", (20, 20), RED).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    dataset = folder(photographs)
    assert len(dataset) == 13
    assert all(dataset.name(index).encode() for index in range(13))


def test_linked_subfolders_are_read(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(photographs)
    assert len(folder(tmp_path / "links")) == 12


def test_circular_links_end(photographs: Path) -> None:
    (photographs / "a" / "loop").symlink_to(photographs)
    assert len(folder(photographs)) == 12


def test_another_folder_can_be_held_out(photographs: Path, tmp_path: Path) -> None:
    """A split made by others: training uses all of one folder."""
    apart = tmp_path / "apart"
    (photographs / "a").rename(apart)
    train, heldout = (
        folder(photographs, split, heldout_folder=str(apart)) for split in ("train", "heldout")
    )
    assert len(train) == len(heldout) == 6
    assert {heldout.name(i) for i in range(6)} == {path.name for path in apart.iterdir()}
    assert {train.name(i) for i in range(6)} == {f"b/c/{2 * i:02d}.png" for i in range(6)}
    with pytest.raises(ValueError, match="outside"):
        FolderOptions(location=str(photographs), heldout_folder=str(photographs / "b"))
    with pytest.raises(DataError, match="does not exist"):
        folder(photographs, "heldout", heldout_folder=str(tmp_path / "gone"))
