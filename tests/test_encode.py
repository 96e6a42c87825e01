"""Encoding of collections: formats, views, splits, data of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import invoke, need
from photographs import BATCHES, contents, split_of
from PIL import Image

import genkit
from genkit.errors import GenkitError, OptionError, UnreadableImage
from genkit.images import from_pixels


def test_one_file_shards_parquet_and_memory_hold_the_same(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    need("pyarrow")
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
    image = from_pixels(split_of(folder).images([9]))
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
    assert torch.equal(read.with_format("torch")["level1"][:], tokens.levels[1].long())


class Rough:
    """Grey images without views. The first ones cannot be read."""

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
    if out == "pq":
        need("pyarrow")
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
        alone = tokenizer.encode(from_pixels(np.ascontiguousarray(pixels)))
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
    views = {split.name(n): split.view(n) for n in range(3)}
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
            (height, width), (top, left, tall, wide), _ = split.view(index, seed)
            assert 0 <= top < top + tall <= height
            assert 0 <= left < left + wide <= width


def test_workers_and_background_reading_give_the_same(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    for workers in (0, 2):
        genkit.encode(trained, folder, tmp_path / f"{workers}", **BATCHES, workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_two_batches_at_a_time_are_encoded_like_one(trained: Path, folder: Path) -> None:
    tokenizer = genkit.load(trained).train()
    before = torch.get_num_threads()
    levels = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            levels.append(genkit.encode(tokenizer, folder, batch_size=1).levels[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*levels)
    assert all(module.training for module in tokenizer.modules())


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


def test_reduced_precision_is_recorded(trained: Path, folder: Path, tmp_path: Path) -> None:
    args = ["encode", trained, folder, "--out", tmp_path / "t", "--mixed-precision", "bf16"]
    assert invoke(*args)[0] == 0
    tokens = genkit.load_tokens(tmp_path / "t")
    assert tokens.precision == "float32, encoder and decoder in bf16"
    exact = genkit.encode(trained, folder)
    assert exact.precision == "float32"
    differing = (tokens.levels[0] != exact.levels[0]).float().mean()
    assert 0 < differing < 0.3


class Stripes(torch.utils.data.Dataset[Any]):
    """Labelled images without names of classes."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, number: int) -> Any:
        return torch.full((3, 32, 32), number / 9), number % 4


@pytest.mark.parametrize("out", [None, "t.safetensors", "shards", "pq"])
def test_a_torch_data_set_and_its_slices(out: str | None, trained: Path, tmp_path: Path) -> None:
    if out == "pq":
        need("pyarrow")
    options: dict[str, Any] = {"format": "parquet"} if out == "pq" else {}
    path = tmp_path / out if out else None
    tokens = genkit.encode(trained, Stripes(), path, **BATCHES, **options)
    assert [tokens[number]["label"] for number in range(9)] == [n % 4 for n in range(9)]
    assert tokens[::-1].labels is not None
    assert tokens[::-1].labels.tolist() == [n % 4 for n in range(9)][::-1]
    assert repr(tokens.names[7:]) == "['00000007', '00000008'] (2 texts)"
    assert tokens[3:3].levels[0].shape == (0, 8, 8)
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
    with pytest.raises(OptionError, match=r"bf8|whole number|is empty|a multiple"):
        genkit.encode(tokenizer, folder, **options)


PEAK = """
import sys
import numpy as np
import torch
import genkit
from genkit.training.meter import peak_memory

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
print(peak_memory(torch.device("cpu")))
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
