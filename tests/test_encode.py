"""Encoding and decoding of collections: shards, resuming, kills, processes, memory and trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import genkit_command, genkit_here, invoke
from filelock import FileLock
from killed import killed_until_done
from mounts import MOUNTS, in_own_mounts
from PIL import Image

import genkit
from genkit.errors import CheckpointError, GenkitError, OptionError, UnreadableImage
from genkit.evaluation.images import all_images
from genkit.images import from_uint8
from genkit.interfaces import Split
from genkit.tokens.decode import decode
from genkit.tokens.output import UNFINISHED

BATCHES: dict[str, Any] = {"batch_size": 4, "shard_size": 8}
FLAGS = ["--batch-size", "4", "--shard-size", "8"]


def photos(folder: Path, count: int = 30) -> Path:
    """Small photographs of two classes, one of them damaged and one with a caption."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        base = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(base).resize((44, 36), Image.Resampling.BICUBIC)
        picture.save(file, compress_level=1)
    (folder / "a" / "00000.txt").write_text("the first")
    damaged = folder / "b" / "00003.png"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


def split_of(folder: Path, options: str = "") -> Split:
    return all_images(f"{folder}{options}", (32, 32))


def contents(out: Path) -> dict[str, bytes]:
    files = [out] if out.is_file() else [file for file in sorted(out.rglob("*")) if file.is_file()]
    return {file.name: file.read_bytes() for file in files}


class Stop(Exception):
    pass


def stop_at(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise Stop

    return progress


def test_one_file_shards_parquet_and_memory_hold_the_same(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    tokenizer = genkit.load(trained)
    memory = genkit.encode(tokenizer, folder, batch_size=4)
    assert len(memory) == 29
    assert list(memory.names)[:2] == ["a/00000.png", "a/00002.png"]
    assert list(memory.captions)[:2] == ["the first", ""]
    assert memory.classes == ["a", "b"]
    assert list(memory.table["unreadable"]) == ["b/00003.png"]
    for name, options in (("t.safetensors", {}), ("shards", {}), ("pq", {"format": "parquet"})):
        tokens = genkit.encode(trained, folder, tmp_path / name, **BATCHES, **options)
        tokens.check(tokenizer)
        assert all(map(torch.equal, tokens.levels, memory.levels))
        for each in ("names", "captions", "classes"):
            assert list(getattr(tokens, each)) == list(getattr(memory, each))
        for each in ("labels", "sizes", "views"):
            assert torch.equal(getattr(tokens, each), getattr(memory, each))
        assert {**memory.table, **tokens.table} == tokens.table
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert [entry["images"] for entry in index["shards"]] == [8, 8, 7, 6]
    assert sorted(contents(tmp_path / "shards")) == [
        *(f"{number:05d}.safetensors" for number in range(4)),
        "index.json",
    ]
    assert not (tmp_path / "t.safetensors.unfinished").exists()
    image = from_uint8(split_of(folder).images([9]))
    alone = tokenizer.encode(image)[0][0].int()
    assert torch.equal(genkit.load_tokens(tmp_path / "shards")[9]["level0"], alone)


def test_datasets_reads_parquet_shards(trained: Path, folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tokens = genkit.encode(trained, folder, tmp_path / "pq", **BATCHES, format="parquet")
    files = str(tmp_path / "pq" / "*.parquet")
    read = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    whole = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "pq")
    assert whole["name"].to_pylist() == list(tokens.names)
    assert read.features["label"].names == ["a", "b"]
    assert read["name"] == list(tokens.names)
    assert torch.equal(read.with_format("torch")["level1"][:], tokens.levels[1].long())  # type: ignore[union-attr]


@pytest.mark.parametrize("out", ["t.safetensors", "shards"])
@pytest.mark.parametrize("count", [1, 9, 30])
def test_an_interrupted_encoding_goes_on(
    trained: Path, folder: Path, tmp_path: Path, out: str, count: int
) -> None:
    """Complete shards are kept; the result is byte for byte that of one go."""
    genkit.encode(trained, folder, tmp_path / "whole" / out, **BATCHES)
    with pytest.raises(Stop):
        genkit.encode(trained, folder, tmp_path / out, **BATCHES, progress=stop_at(count))
    left = tmp_path / (f"{out}.unfinished" if out.endswith("s") and "." in out else out)
    shards = {file: file.stat().st_mtime_ns for file in left.glob("0*")}
    assert len(shards) == (count - 1) // 8
    with pytest.raises(CheckpointError, match="an unfinished output"):
        genkit.load_tokens(left)
    seen: list[int] = []
    genkit.encode(trained, folder, tmp_path / out, **BATCHES, progress=lambda n, _: seen.append(n))
    assert seen[0] == len(shards) * 8
    assert seen[-1] == 30
    assert contents(tmp_path / out) == contents(tmp_path / "whole" / out)
    if out == "shards":
        assert all(file.stat().st_mtime_ns == time for file, time in shards.items())
    with pytest.raises(GenkitError, match=r"already: name another --out"):
        genkit.encode(trained, folder, tmp_path / out, **BATCHES)


def test_an_unreadable_first_image_belongs_to_its_shard(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    first = folder / "a" / "00000.png"
    first.write_bytes(first.read_bytes()[:1000])
    genkit.encode(trained, folder, tmp_path / "whole", **BATCHES)
    with pytest.raises(Stop):
        genkit.encode(trained, folder, tmp_path / "out", **BATCHES, progress=stop_at(10))
    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    assert sorted(tokens.table["unreadable"]) == ["a/00000.png", "b/00003.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Rough:
    """Grey images of an object without views, the first ones of which cannot be read."""

    fingerprint, channels = "rough", 3
    classes: ClassVar[list[str]] = []

    def __init__(self, count: int, unreadable: int) -> None:
        self.count, self.unreadable = count, unreadable
        self.problems: dict[str, str] = {}

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index:03}"

    def images(self, indices: Any, seeds: Any = None) -> Any:
        for index in indices:
            if index < self.unreadable:
                raise UnreadableImage(self.name(index), "rough")
        rows = [np.full((32, 32, 3), 8 * index, np.uint8) for index in indices]
        if seeds is not None:
            rows = [row + np.uint8(seed % 7) for row, seed in zip(rows, seeds, strict=True)]
        return np.stack(rows)

    def label(self, index: int) -> int | None:
        return None

    def caption(self, index: int) -> str | None:
        return "dark" if index == 11 else None


@pytest.mark.parametrize("out", ["t.safetensors", "shards", "pq"])
@pytest.mark.parametrize("views", [1, 2])
def test_a_shard_without_readable_images(
    out: str, views: int, trained: Path, tmp_path: Path
) -> None:
    options = {"format": "parquet"} if out == "pq" else {}
    split = Rough(20, 9)
    genkit.encode(trained, split, tmp_path / out, **BATCHES, views=views, **options)
    tokens = genkit.load_tokens(tmp_path / out)
    tokens.check(genkit.load(trained))
    assert list(tokens.names) == [f"{n:03}" for n in range(9, 20) for _ in range(views)]
    assert list(tokens.table["unreadable"]) == [f"{n:03}" for n in range(9)]
    assert [bool(text) for text in tokens.captions].index(True) == 2 * views
    assert tokens.sizes is None
    assert (tokens.views is None) == (views == 1)


def test_a_split_is_encoded(trained: Path, folder: Path, tmp_path: Path) -> None:
    both = [f"{tmp_path / name}.safetensors" for name in ("train", "heldout")]
    for out, split in zip(both, ("train", "heldout"), strict=True):
        code, text = invoke("encode", trained, folder, "--split", split, "--out", out)
        assert code == 0, text
    names = [set(genkit.load_tokens(out).names) for out in both]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 29
    assert min(map(len, names)) > 0


def test_an_unfinished_encoding_of_something_else_is_refused(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def encode(tokenizer: Any = trained, images: Any = folder, **options: Any) -> None:
        genkit.encode(tokenizer, images, out, **{**BATCHES, **options})

    with pytest.raises(Stop):
        encode(progress=stop_at(9))
    before = contents(out)
    other = genkit.load(trained)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    for message, changes in {
        "begun with model": {"tokenizer": other},
        "shard size 8, not 16": {"shard_size": 16},
        "views 1, not 2": {"views": 2, "images": f"{folder}?flip=true"},
        "pixels": {"images": f"{folder}?short_side=36"},
        "format safetensors, not parquet": {"format": "parquet"},
        "precision float32, not": {"mixed_precision": "bf16"},
        r"resolution \[32, 32\], not": {"resolution": 64},
    }.items():
        with pytest.raises(GenkitError, match=message):
            encode(**changes)
    (folder / "c.png").write_bytes((folder / "a" / "00000.png").read_bytes())
    with pytest.raises(GenkitError, match="begun with set of images"):
        encode()
    (folder / "c.png").unlink()
    with FileLock(out / ".lock"), pytest.raises(GenkitError, match="another process is writing"):
        encode()
    assert contents(out) == before
    encode()


def test_an_output_that_cannot_be_written_is_refused_first(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / ".env").write_text("mine")
    (tmp_path / "t.safetensors.unfinished").mkdir()
    (tmp_path / "t.safetensors.unfinished" / "mine.txt").write_text("mine")
    for out, message in {
        "notes": "is a folder with files already: name another",
        ".hidden": "is a folder with files already: name another",
        "notes/mine.txt": "is a file: name a folder",
        "notes/mine.txt/deeper": "is not a folder",
        "t.safetensors": "unfinished' is in the way: remove it",
        "x" * 300: "cannot be written: File name too long",
    }.items():
        code, text = invoke("encode", trained, "nowhere", "--out", tmp_path / out)
        assert (code, message in text) == (1, True), text
        if out != "t.safetensors":
            code, text = invoke("decode", trained, tmp_path / "notes", "--out", tmp_path / out)
            assert code == 1
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}
    assert contents(tmp_path / ".hidden") == {".env": b"mine"}
    assert contents(tmp_path / "t.safetensors.unfinished") == {"mine.txt": b"mine"}
    code, text = invoke(
        "encode", trained, folder, "--out", tmp_path / "t.parquet", "--format", "parquet"
    )
    assert (code, "writes a folder of shards" in text) == (2, True), text
    code, text = invoke("encode", trained, folder, "--out", tmp_path / "x", "--shard-size", "0")
    assert (code, "0 is not in the range" in text) == (2, True), text
    with pytest.raises(OptionError, match="shard_size must be a whole number of 1 or more, not 0"):
        genkit.encode(trained, folder, tmp_path / "x", shard_size=0)
    (tmp_path / "empty").mkdir()
    code, text = invoke("encode", trained, tmp_path / "empty", "--out", tmp_path / "x")
    assert (code, "no image can be read" in text) == (1, True), text
    assert not (tmp_path / "x").exists()


def test_views_are_what_they_say(trained: Path, folder: Path, tmp_path: Path) -> None:
    """Each view is the crop of the original that its row describes, mirrored if it says so."""
    source = f"{folder}?flip=true&short_side=36"
    tokens = genkit.encode(trained, source, tmp_path / "t.safetensors", views=4, batch_size=7)
    fewer = genkit.encode(trained, source, views=2)
    assert len(tokens) == 4 * 29
    assert tokens.views is not None
    assert tokens.sizes is not None
    assert fewer.views is not None
    assert torch.equal(tokens.views.reshape(29, 4, 6)[:, :2], fewer.views.reshape(29, 2, 6))
    tokenizer = genkit.load(trained)
    assert tokens.views[:, 0].tolist() == [0, 1, 2, 3] * 29
    assert set(tokens.views[:, 5].tolist()) == {0, 1}
    assert tokens.views[::4, 5].sum() == 0
    for number in range(0, len(tokens), 5):
        _, top, left, height, width, mirrored = tokens.views[number].tolist()
        assert tokens.sizes[number].tolist() == [36, 44]
        with Image.open(folder / tokens.names[number]) as picture:
            pixels = np.asarray(picture)[None, top : top + height, left : left + width]
        pixels = pixels[:, :, ::-1] if mirrored else pixels
        alone = tokenizer.encode(from_uint8(np.ascontiguousarray(pixels)))
        assert torch.equal(tokens[number]["level1"], alone[1][0].int())
    square = tmp_path / "square"
    square.mkdir()
    with Image.open(folder / tokens.names[0]) as picture:
        picture.resize((32, 32)).save(square / "a.png")
    with pytest.raises(OptionError, match=r"all views of 'a.png' are equal.*short_side"):
        genkit.encode(trained, f"{square}?flip=false", views=2)


def test_a_view_of_a_turned_or_very_long_image(tmp_path: Path) -> None:
    long = np.tile(np.arange(1000, dtype=np.uint16)[None, :, None] % 251, (40, 1, 3))
    Image.fromarray(long.astype(np.uint8)).save(tmp_path / "long.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.tif", exif=exif)
    split = split_of(tmp_path)
    views = {split.name(n): split.view(n) for n in range(3)}  # type: ignore[attr-defined]
    assert views["turned.tif"] == views["turned.jpg"]
    assert views["turned.jpg"] == ((64, 32), (16, 0, 32, 32), False)
    size, (top, left, height, width), _ = views["long.png"]
    assert (size, top, height) == ((40, 1000), 0, 40)
    assert (left, width) == (480, 40)


def test_crops_stay_inside_their_originals(tmp_path: Path) -> None:
    """Sizes and places are rounded to pixels of the original."""
    for number, size in enumerate([(675, 700), (31, 9), (5, 5), (1, 300)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    split = split_of(tmp_path, "?short_side=50")
    for index in range(4):
        for seed in (None, *range(30)):
            (height, width), (top, left, tall, wide), _ = split.view(index, seed)  # type: ignore[attr-defined]
            assert 0 <= top < top + tall <= height
            assert 0 <= left < left + wide <= width


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE '2', which no launcher sets"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'"),
    ],
)
def test_a_launchers_leftovers_are_reported(
    environment: dict[str, str],
    message: str,
    trained: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GenkitError, match=message):
        genkit.encode(trained, folder, tmp_path / "out")


@pytest.mark.parametrize(
    "launcher", ["--processes", pytest.param("environment", marks=pytest.mark.slow)]
)
def test_two_processes_write_the_same(
    launcher: str, trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "alone", **BATCHES)
    args = ["encode", trained, folder, "--out", tmp_path / "both", *FLAGS]
    if launcher == "--processes":
        done = genkit_command(*args, "--processes", "2")
        assert done.returncode == 0, done.stderr
        assert "b/00003.png is left out" in done.stderr
        assert "Encoded 29 images (1 file left out) into" in done.stdout
    else:
        command = [sys.executable, "-m", "genkit_cli", *map(str, args)]
        running = [
            subprocess.Popen(
                command, env={**os.environ, "RANK": f"{rank}", "WORLD_SIZE": "2"}, text=True
            )
            for rank in (1, 0)
        ]
        assert [process.wait(100) for process in running] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_workers_and_background_reading_give_the_same(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    for workers in (0, 2):
        genkit.encode(trained, folder, tmp_path / f"{workers}", **BATCHES, workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_files_that_change_meanwhile_are_named(trained: Path, folder: Path, tmp_path: Path) -> None:
    def change(done: int, total: int) -> None:
        if done == 4:
            (folder / "b" / "00029.png").unlink()
            (folder / "b" / "00027.png").write_bytes(b"another content")

    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES, progress=change)
    unreadable = tokens.table["unreadable"]
    assert sorted(unreadable) == ["b/00003.png", "b/00027.png", "b/00029.png"]
    assert "bytes when it was listed, and now has 15" in unreadable["b/00027.png"]
    assert "No such file" in unreadable["b/00029.png"]
    assert len(tokens) == 27


def test_a_full_disk_keeps_complete_shards(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit.tokens.encode as engine

    real, calls = engine.write_rows, []

    def full(path: Path, *args: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise GenkitError(f"'{path}' cannot be written: No space left on device")
        real(path, *args)

    monkeypatch.setattr(engine, "write_rows", full)
    with pytest.raises(GenkitError, match=r"No space left on device; 2 of 4 shards are complete"):
        genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    monkeypatch.undo()
    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    assert len(tokens) == 29


@pytest.mark.slow
@MOUNTS
def test_a_disk_that_is_really_full(trained: Path, folder: Path, tmp_path: Path) -> None:
    """Once there is room again, the same command finishes."""
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    genkit.encode(trained, folder, whole, **BATCHES)
    room = sum(map(len, contents(whole).values())) // 2
    encode = f"{sys.executable} -m genkit_cli encode {trained} {folder} {' '.join(FLAGS)}"
    done = in_own_mounts(
        f"mount -t tmpfs -o size={room} tmpfs {disk} && ({encode} --out {disk}/out; "
        f"mount -o remount,size=4m {disk}; {encode} --out {disk}/out; cp -r {disk}/out {tmp_path})"
    )
    assert done.stderr.count("No space left on device; ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path / "out") == contents(whole)


def test_reduced_precision_is_recorded(trained: Path, folder: Path, tmp_path: Path) -> None:
    args = ["encode", trained, folder, "--out", tmp_path / "t", "--mixed-precision", "bf16"]
    assert invoke(*args)[0] == 0
    tokens = genkit.load_tokens(tmp_path / "t")
    assert tokens.precision == "float32, encoder and decoder in bf16"
    exact = genkit.encode(trained, folder)
    assert exact.precision == "float32"
    differing = (tokens.levels[0] != exact.levels[0]).float().mean()  # type: ignore[union-attr]
    assert 0 < differing < 0.3


def test_the_tokens_command(trained: Path, folder: Path, tmp_path: Path) -> None:
    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    code, text = invoke("tokens", tmp_path / "out")
    assert code == 0, text
    for part in (
        "29 in 4 shards: a/00000.png … b/00029.png",
        "encoder aren, quantizer vq",
        tokens.model[:16],
        tokens.source,
        "32 x 32",
        "grid 8 x 8",
        "of 16 codes in use",
        "29 images, 2 classes",
        "1 image",
        "1 file that could not be read",
    ):
        assert part in text, part
    found = json.loads(invoke("tokens", tmp_path / "out", "--json")[1])
    used = tokens.levels[0].unique()  # type: ignore[union-attr]
    assert found["levels"][0]["active"] == len(used)
    assert found["levels"][1]["grids"] == [[4, 4, 29]]
    assert (found["labelled"], found["captions"]) == (29, 1)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("levels", []),
        ("levels", [1, 2]),
        ("levels", [{"codebook_size": -5}] * 2),
        ("levels", [{"codebook_size": 2}] * 2),
        ("levels", [{"codebook_size": 16, "codebooks": 3}] * 2),
        ("components", []),
        ("views", "2"),
        ("resolution", 32),
        ("unreadable", 1),
        ("images", 3),
        ("version", 9),
    ],
)
def test_a_damaged_index_is_reported(
    entry: str, value: Any, trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_text())
    index["tokens"][entry] = value
    path.write_text(json.dumps(index))
    code, text = invoke("tokens", tmp_path / "out")
    assert (code, "damaged" in text) == (1, True), text


@pytest.mark.parametrize("change", ["twice", "nameless", "gone"])
def test_a_damaged_list_of_shards_is_reported(
    change: str, trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_text())
    shards = index["shards"]
    index["shards"] = {"twice": [shards[0]] * 4, "gone": []}.get(change, shards)
    if change == "nameless":
        shards[0]["file"] = ""
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index.json' is damaged"):
        genkit.load_tokens(tmp_path / "out")


def test_an_unfinished_file_belongs_to_its_plan(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    """A kill between the end of a file and the removal of its parts."""
    out = tmp_path / "t.safetensors"
    with pytest.raises(Stop):
        genkit.encode(trained, folder, out, **BATCHES, progress=stop_at(20))
    parts = tmp_path / "t.safetensors.unfinished"
    plan = (parts / UNFINISHED).read_bytes()
    genkit.encode(trained, folder, out, **BATCHES)
    before = out.read_bytes()
    parts.mkdir()
    (parts / UNFINISHED).write_bytes(plan)
    with pytest.raises(GenkitError, match="begun with views 1, not 2"):
        genkit.encode(trained, f"{folder}?flip=true", out, **BATCHES, views=2)
    genkit.encode(trained, folder, out, **BATCHES)
    assert not parts.exists()
    parts.mkdir()
    with pytest.raises(GenkitError, match="exists already"):
        genkit.encode(trained, folder, out, **BATCHES)
    assert not parts.exists()
    assert out.read_bytes() == before
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / UNFINISHED).write_text("[]")
    with pytest.raises(GenkitError, match="begun with command null, not encode"):
        genkit.encode(trained, folder, tmp_path / "odd", **BATCHES)


class Stripes(torch.utils.data.Dataset[Any]):
    """Labelled images without names of classes."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, number: int) -> Any:
        return torch.full((3, 32, 32), number / 9), number % 4


@pytest.mark.parametrize("out", [None, "t.safetensors", "shards", "pq"])
def test_a_torch_data_set_and_its_slices(out: str | None, trained: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"format": "parquet"} if out == "pq" else {}
    path = tmp_path / out if out else None
    tokens = genkit.encode(trained, Stripes(), path, **BATCHES, **options)
    assert [tokens[number]["label"] for number in range(9)] == [n % 4 for n in range(9)]
    assert tokens[::-1].labels is not None
    assert tokens[::-1].labels.tolist() == [n % 4 for n in range(9)][::-1]
    assert repr(tokens.names[7:]) == "['00000007', '00000008'] (2 texts)"
    assert tokens[3:3].levels[0].shape == (0, 8, 8)  # type: ignore[union-attr]
    assert repr(tokens[2:]).startswith("Tokens of 7 images, model ")
    before = tokens[0]["level0"].clone()
    tokens[0]["level0"].fill_(99)
    assert torch.equal(tokens[0]["level0"], before)
    genkit.save_tokens(tokens[1::3], tmp_path / "some.safetensors")
    some = genkit.load_tokens(tmp_path / "some.safetensors")
    assert list(some.names) == ["00000001", "00000004", "00000007"]
    batch = next(iter(torch.utils.data.DataLoader(tokens, batch_size=9)))
    assert sorted(batch) == ["caption", "label", "level0", "level1", "name"]
    with pytest.raises(IndexError, match="there is no image 9 among 9"):
        _ = tokens[9]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "int is not a data set with images"),
        (iter([1]), "is not a data set with images"),
        (["a.png"], "must be an image or begin with one, not str"),
        ([{"image": 1}], "must be an image or begin with one, not dict"),
        (Image.new("RGB", (32, 32)), "Image is not a data set"),
    ],
)
def test_data_of_another_kind(data: Any, message: str, trained: Path) -> None:
    with pytest.raises(GenkitError, match=message):
        genkit.encode(trained, data)
    assert len(genkit.encode(trained, [Image.new("RGB", (40, 50))])) == 1


@pytest.mark.parametrize(
    "options", [{"mixed_precision": "bf8"}, {"workers": -7}, {"resolution": 0}, {"out": ""}]
)
def test_wrong_arguments(options: dict[str, Any], trained: Path, folder: Path) -> None:
    tokenizer = genkit.load(trained)
    with pytest.raises(OptionError, match=r"bf8|whole number|is empty"):
        genkit.encode(tokenizer, folder, **options)


def test_missing_and_damaged_shards(trained: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    genkit.encode(trained, folder, out, **BATCHES)
    tokenizer = genkit.load(trained)
    shard = out / "00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(
        CheckpointError, match=r"the shard '.*00002.safetensors' is missing: copy it again"
    ):
        genkit.load_tokens(out)
    shard.write_bytes(content[:-20])
    code, text = invoke("decode", trained, out, "--out", tmp_path / "pictures")
    assert code == 1
    assert "00002.safetensors' is damaged" in text
    shard.write_bytes((out / "00000.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds 8 images where index.json says 7"):
        genkit.load_tokens(out)
    changed = bytearray(content)
    changed[-3:] = b"\xff\xff\xff"  # The last view's last number.
    shard.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"00002.safetensors' is damaged: its SHA-256"):
        genkit.load_tokens(out).check(tokenizer)
    (out / "index.json").write_text('{"tokens": 1')
    with pytest.raises(CheckpointError, match=r"index.json' is damaged"):
        genkit.load_tokens(out)
    assert not (tmp_path / "pictures").exists()


def pictures(out: Path) -> Iterator[Any]:
    for file in sorted(out.glob("*.png")):
        with Image.open(file) as picture:
            yield np.asarray(picture)


def test_decoding(trained: Path, folder: Path, tmp_path: Path) -> None:
    tokenizer = genkit.load(trained)
    tokens = genkit.encode(tokenizer, folder, tmp_path / "tokens", **BATCHES)
    args = ["decode", trained, tmp_path / "tokens", "--batch-size", "4"]
    done = genkit_here(*args, "--out", tmp_path / "png")
    assert (done.returncode, done.stdout) == (0, f"Decoded 29 images into {tmp_path / 'png'}.\n")
    expected = genkit.images.to_uint8(tokenizer.decode(tokens.batch(0, 29)))
    found = np.stack([*pictures(tmp_path / "png")])
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert sorted(contents(tmp_path / "png"))[::28] == ["00000-a-00000.png", "00028-b-00029.png"]
    both = genkit_command(*args, "--out", tmp_path / "both", "--processes", "2")
    assert both.returncode == 0, both.stderr
    assert contents(tmp_path / "both") == contents(tmp_path / "png")
    npy = genkit_here(*args, "--out", tmp_path / "npy", "--format", "npy", "--shard-size", "10")
    assert npy.returncode == 0, npy.stderr
    arrays = [np.load(file) for file in sorted((tmp_path / "npy").glob("*.npy"))]
    assert [len(array) for array in arrays] == [10, 10, 9]
    assert np.abs(np.concatenate(arrays).astype(int) - expected).max() <= 1
    code, text = invoke(*args, "--out", tmp_path / "png")
    assert (code, "already: name another --out" in text) == (1, True)


@pytest.mark.parametrize("format", ["png", "npy"])
def test_an_interrupted_decoding_goes_on(
    format: str, trained: Path, folder: Path, tmp_path: Path
) -> None:
    tokenizer = genkit.load(trained)
    tokens = genkit.encode(tokenizer, folder)
    options: dict[str, Any] = {"format": format, **BATCHES}
    decode(tokenizer, tokens, tmp_path / "whole", **options)
    with pytest.raises(Stop):
        decode(tokenizer, tokens, tmp_path / "out", **options, progress=stop_at(12))
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("0*")}
    assert len(times) == {"png": 12, "npy": 1}[format]
    with pytest.raises(GenkitError, match="begun with number of images 29, not 5"):
        decode(tokenizer, tokens[:5], tmp_path / "out", **options)
    with pytest.raises(GenkitError, match="begun with indices"):
        decode(tokenizer, tokens[::-1], tmp_path / "out", **options)
    other = genkit.load(trained)
    next(other.parameters()).data.add_(1)
    with pytest.raises(CheckpointError, match="made by another model"):
        decode(other, tokens, tmp_path / "out", **options)
    with pytest.raises(OptionError, match="batch_size must be a whole number of 1 or more"):
        decode(tokenizer, tokens, tmp_path / "out", batch_size=0)
    decode(tokenizer, tokens, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_a_killed_encoding_ends_with_the_same_bytes(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "whole" / "t.safetensors", **BATCHES)
    args = ["encode", str(trained), str(folder), *FLAGS, "--workers", "2"]
    struck = killed_until_done(args, tmp_path / "t.safetensors", kills=1, seed=1)
    assert struck == 1
    assert contents(tmp_path / "t.safetensors") == contents(tmp_path / "whole" / "t.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "t.safetensors", "whole"]


@pytest.mark.parametrize(
    ("out", "more", "rounds"),
    [
        pytest.param("shards", ["--processes", "2"], 1, marks=pytest.mark.slow),
        pytest.param("png", ["--processes", "2"], 1, marks=pytest.mark.slow),
        pytest.param("t.safetensors", [], 3, marks=pytest.mark.full),
        pytest.param("shards", ["--workers", "2"], 3, marks=pytest.mark.full),
        pytest.param("pq", ["--format", "parquet", "--processes", "2"], 3, marks=pytest.mark.full),
        pytest.param("npy", ["--format", "npy"], 3, marks=pytest.mark.full),
    ],
)
def test_many_kills(out: str, more: list[str], rounds: int, trained: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 300)
    decoding = out in ("png", "npy")
    source = genkit.encode(trained, folder, tmp_path / "tokens", **BATCHES) if decoding else None
    args = ["decode" if source else "encode", str(trained)]
    args += [str(tmp_path / "tokens" if source else folder), *FLAGS, *more]
    whole = genkit_command(*args, "--out", tmp_path / "whole" / out)
    assert whole.returncode == 0, whole.stderr
    struck = 0
    for seed in range(rounds):
        struck += killed_until_done(args, tmp_path / f"{seed}" / out, kills=5, seed=seed)
        assert contents(tmp_path / f"{seed}" / out) == contents(tmp_path / "whole" / out)
        assert [path.name for path in (tmp_path / f"{seed}").iterdir()] == [out]
    assert struck >= 2 * rounds


PEAK = """
import resource, sys
import numpy as np
import genkit

class Many:
    fingerprint, channels, classes, problems = "many", 3, [], {}
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def name(self, number): return f"{number:050}"
    def images(self, numbers, seeds=None):
        return np.stack([np.full((32, 32, 3), number % 256, np.uint8) for number in numbers])
    def label(self, number): return None
    def caption(self, number): return None

checkpoint, out, count = sys.argv[1:]
genkit.encode(checkpoint, Many(int(count)), out, batch_size=64, shard_size=500)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("out", ["t.safetensors", "shards"])
def test_memory_does_not_grow_with_the_number_of_images(
    out: str, trained: Path, tmp_path: Path
) -> None:
    """18,000 more images have 55 MB of pixels, 6 MB of indices and 2 MB of names."""
    peaks = []
    for count in (2_000, 20_000):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, trained, tmp_path / f"{count}" / out, f"{count}"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 6, peaks
