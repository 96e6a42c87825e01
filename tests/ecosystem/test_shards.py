"""Tar shards, readable and unreadable."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, in_tars, numbers, png, shards, write_shard, write_tar
from PIL import Image

from genkit.data.reading import read
from genkit.errors import DataError, OptionError
from genkit.settings import data_table


def samples(split: Any) -> set[str]:
    return {split.dataset.file_of(number).sample for number in split.numbers}


def test_members_that_are_not_images_are_skipped(tmp_path: Path) -> None:
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
    # The last member of a name counts, as when a tar file is unpacked.
    assert numbers(dataset)[:2] == [4, 2]


def test_long_names_and_names_that_are_not_text(tmp_path: Path) -> None:
    names = ["d" * 150 + "/" + "n" * 120 + ".png", "\udcff.png"]
    dataset = in_tars(tmp_path / "a.tar", [(name, png(n)) for n, name in enumerate(names)])
    assert numbers(dataset) == [0, 1]
    assert dataset.name(0) == f"a.tar/{names[0]}"
    assert all(dataset.name(index).encode() for index in range(2))


def test_samples_with_several_images_need_a_choice(tmp_path: Path) -> None:
    members = [
        (f"{n}.{end}", png(n + k)) for n in range(20) for k, end in enumerate(("in.png", "png"))
    ]
    with pytest.raises(OptionError, match=r"such as 0.in.png and 0.png: .* with --data.endings"):
        in_tars(tmp_path / "a.tar", members)
    assert numbers(shards(tmp_path / "a.tar", endings="png")) == list(range(1, 21))
    both = {"endings": "png, in.png", "heldout": 0.5}
    train, heldout = (
        samples(shards(tmp_path / "a.tar", split, **both)) for split in ("train", "heldout")
    )
    assert not train & heldout
    assert len(train | heldout) == 20
    with pytest.raises(DataError, match=r"no image that ends in jpg; it holds \.in\.png, \.png$"):
        shards(tmp_path / "a.tar", endings="jpg")


def test_shards_with_the_same_name_in_several_folders(tmp_path: Path) -> None:
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
        with pytest.raises(DataError, match=f"packed.{suffix}' is compressed, .*: uncompress it"):
            shards(packed)


def test_missing_shards_are_named(places: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the shard '.*a-03.tar' does not exist"):
        shards(places / "a-{00..04}.tar")
    with pytest.raises(DataError, match="only local shards can be read"):
        shards("https://example.org/a.tar")
    with pytest.raises(DataError, match="name them with --data"):
        shards("")
    with pytest.raises(DataError, match="has no image"):
        in_tars(tmp_path / "none.tar", [("a.txt", b"text")])


def test_a_shard_truncated_while_it_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", range(4))
    dataset = shards(tmp_path / "a.tar")
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(dataset.dataset.files[2].start + 5)
    assert read(dataset, range(4))[0] == [0, 1]
    assert dataset.problems["a.tar/sub/0002.png"] == "the shard has been cut short"
    # A rewritten shard is read again, not taken from a cache.
    write_shard(tmp_path / "a.tar", range(4, 7))
    assert numbers(shards(tmp_path / "a.tar")) == [4, 5, 6]


def test_dots_may_be_part_of_names(tmp_path: Path) -> None:
    """Dates, times, versions and decimals in names work if no ending occurs twice."""
    names = [f"2024.01.0{n}-photo.png" for n in range(6)] + ["img_0.1.png", "img_0.25.png"]
    members = [(name, png(n)) for n, name in enumerate(names)] + [("cover.png", png(8))]
    every = in_tars(tmp_path / "a.tar", members)
    assert numbers(every) == list(range(9))
    assert len(samples(every)) == 9
    assert numbers(shards(tmp_path / "a.tar", endings="png")) == list(range(9))
    endings = ",".join(name.partition(".")[2] for name in names[:6])
    assert numbers(shards(tmp_path / "a.tar", endings=endings)) == list(range(6))
    train, heldout = (shards(tmp_path / "a.tar", split) for split in ("train", "heldout"))
    assert sorted(numbers(train) + numbers(heldout)) == list(range(9))


def test_a_chosen_ending_is_read(tmp_path: Path) -> None:
    in_tars(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(2)])
    assert numbers(shards(tmp_path / "a.tar", endings=".png")) == [0, 1]
    write_tar(tmp_path / "b.tar", [(f"{n}.img", png(n)) for n in range(3)])
    assert numbers(shards(tmp_path / "b.tar", endings="img")) == [0, 1, 2]
    with pytest.raises(DataError, match=r"has no image; it holds \.img$"):
        shards(tmp_path / "b.tar")


def test_hidden_folders_of_a_shard_are_skipped(tmp_path: Path) -> None:
    members = [
        (name, png(1))
        for name in ("./a/1.png", ".thumbnails/1.png", "__MACOSX/a/1.png", "a/.cache/x.png")
    ]
    dataset = in_tars(tmp_path / "a.tar", members)
    assert [dataset.name(index) for index in range(len(dataset))] == ["a.tar/./a/1.png"]


def test_a_pattern_matches_existing_shards(places: Path) -> None:
    assert data_table(f"{places}/a-*.tar")["name"] == "shards"
    starred = shards(places / "a-*.tar")
    assert starred.fingerprint == shards(places / "a-{00..02}.tar").fingerprint
    with pytest.raises(DataError, match=r"the shard '.*/c-\*\.tar' does not exist"):
        shards(places / "c-*.tar")
    piped = data_table("pipe:cat a.tar")
    with pytest.raises(DataError, match=r"'pipe:cat a\.tar' is not a local file"):
        shards(piped["location"])
