"""Token files: the schema in one file, ragged grids, old files, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, invoke, need
from genkit_datasets import FacesOptions
from genkit_datasets.faces import LABELS, Faces
from safetensors.torch import load_file, save_file

import genkit
from genkit.checkpoint.header import read_header
from genkit.checkpoint.model import fingerprint
from genkit.errors import CheckpointError
from genkit.run.options import layered, resolve_run
from genkit.tokens.dataset import Tokens, load_tokens, save_tokens
from genkit.tokens.encode import encode
from genkit.tokens.files import FileShard, join
from genkit.tokens.parquet import write_parquet
from genkit.tokens.rows import Ragged, Rows
from genkit.training.meter import peak_memory


def full() -> Tokens:
    """Two images of two levels, one level with two codebooks, with every optional field."""
    fine = torch.arange(8, dtype=torch.int32).reshape(2, 2, 2)
    coarse = torch.arange(4, dtype=torch.int32).reshape(2, 1, 1, 2)
    rows = Rows(
        [fine, coarse],
        ["a.png", "b/\u00e9.png"],
        torch.tensor([1, -1]),
        ["a caption \U0001f600", ""],
        torch.tensor([[480, 640], [31, 7]], dtype=torch.int32),
        torch.tensor([[0, 0, 80, 480, 480, 0], [1, 5, 0, 7, 7, 1]], dtype=torch.int32),
    )
    return Tokens.of(rows, ["dog", "cat"], model="model", source="source", precision="bfloat16")


def alike(one: Rows, other: Rows) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(a == b)

    return same(list(vars(one).values()), list(vars(other).values()))


def everything(tokens: Tokens) -> Rows:
    return tokens.rows(0, len(tokens))


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_everything_comes_back(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        need("pyarrow")
    path = tmp_path / f"t.{kind}"

    def saved(tokens: Tokens) -> Tokens:
        if kind == "parquet":
            write_parquet(path, everything(tokens), tokens.classes, tokens.table)
        else:
            save_tokens(tokens, path)
        return load_tokens(path)

    found = saved(full())
    found.check()
    assert alike(everything(found), everything(full()))
    assert (found.model, found.source, found.precision) == ("model", "source", "bfloat16")
    assert found.classes == ["dog", "cat"]
    rows = everything(full())
    bare = saved(Tokens.of(Rows(rows.levels, rows.names), model="m"))
    assert all(map(torch.equal, bare.levels, rows.levels))
    assert (bare.labels, bare.sizes, bare.views) == (None, None, None)
    assert list(bare.captions) == ["", ""]


def test_any_rows_are_read(tmp_path: Path) -> None:
    """Items, slices, slices of slices and single names, over two files and empty ones."""
    rows = [everything(full()), everything(full()).of(0, 0), everything(full())]
    for number, each in enumerate(rows):
        save_tokens(Tokens.of(each, ["dog", "cat"]), tmp_path / f"{number}")
    tokens = Tokens([FileShard(tmp_path / f"{number}") for number in range(3)], {})
    assert len(tokens) == 4
    assert [tokens[number]["name"] for number in (0, 1, 2, -1)] == [*rows[0].names] * 2
    assert tokens[3]["level1"].tolist() == [[[2, 3]]]
    assert (tokens[2]["label"], tokens[2]["caption"]) == (1, "a caption \U0001f600")
    assert [part["name"] for part in tokens[1:3]] == ["b/\u00e9.png", "a.png"]
    assert list(tokens[1:][1:].names) == list(tokens.names[2:]) == list(rows[0].names)
    assert tokens[::-1][0]["name"] == tokens.names[3]
    assert [level.shape[0] for level in tokens[::2].batch(0, 9)] == [2, 2]
    assert torch.equal(tokens.batch(1, 3)[0], tokens.levels[0][1:3])
    assert tokens[1:3].labels is not None
    assert tokens[1:3].labels.tolist() == [-1, 1]
    with pytest.raises(IndexError):
        _ = tokens[4]
    loaded = next(iter(torch.utils.data.DataLoader(tokens, batch_size=4)))
    assert torch.equal(loaded["level0"], tokens.levels[0])


def test_joined_files_equal_one(tmp_path: Path) -> None:
    """Without captions in one of them, and byte by byte."""
    one, two = everything(full()), everything(full())
    two = Rows(two.levels, two.names, two.labels, None, two.sizes, two.views)
    paths = [tmp_path / name for name in ("0", "1", "joined", "whole")]
    for rows, path in zip((one, two), paths, strict=False):
        save_tokens(Tokens.of(rows, ["dog", "cat"]), path)
    join([FileShard(path) for path in paths[:2]], paths[2], {"model": "m"})
    every = Tokens([FileShard(path) for path in paths[:2]], {"model": "m"}, ["dog", "cat"])
    save_tokens(every, paths[3])
    assert paths[2].read_bytes() == paths[3].read_bytes()
    assert load_file(paths[2])["label"].tolist() == [1, -1, 1, -1]


def test_a_million_rows_are_opened_without_reading_them(tmp_path: Path) -> None:
    """A file without content behind its header: whatever is read beyond what is asked fails."""
    count, path = 10**6, tmp_path / "t"
    shapes = {
        "name.offsets": ("I64", [count + 1], 8),
        "label": ("I64", [count], 8),
        "level0": ("I32", [count, 16, 16], 1024),
        "name.bytes": ("U8", [10 * count], 10),
    }
    header: dict[str, Any] = {
        "__metadata__": {
            "genkit": json.dumps({"schema": 1, "tokens": {"version": 2, "images": count}})
        }
    }
    end = 0
    for name, (kind, shape, size) in shapes.items():
        start, end = end, end + size * (count if name == "name.bytes" else shape[0])
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header["name.bytes"]["data_offsets"][1] = end = header["name.bytes"]["data_offsets"][0] + 10**7
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # A hole that takes no space on the disk.
        for row in (123_456, 123_457):
            file.seek(8 + len(text) + 8 * row)
            file.write((10 * row).to_bytes(8, "little"))
        file.seek(8 + len(text) + header["name.bytes"]["data_offsets"][0] + 10 * 123_456)
        file.write(b"photo-0001")
    before = peak_mb()
    tokens = load_tokens(path)
    assert len(tokens) == len(tokens.names) == count
    assert tokens.names[123_456] == tokens[123_456]["name"] == "photo-0001"
    assert len(tokens[500_000:][:-1]) == 499_999
    assert tokens[500_000:].batch(0, 1)[0].shape == (1, 16, 16)
    assert peak_mb() - before < 10


def peak_mb() -> float:
    return peak_memory(torch.device("cpu")) or 0


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    """The format that genkit wrote before files had a version."""
    path = tmp_path / "old.safetensors"
    info: dict[str, Any] = {
        "schema": 1,
        "tokens": {"names": ["a.png", "b/\u00e9.png"], "model": "m"},
    }
    tensors = {f"level{index}": level for index, level in enumerate(full().levels)}
    save_file(tensors, path, {"format": "pt", "genkit": json.dumps(info)})
    found = load_tokens(path)
    assert all(map(torch.equal, found.levels, full().levels))
    assert list(found.names) == list(full().names)
    assert (found.model, found.labels) == ("m", None)


def test_images_of_different_sizes_share_a_file(tmp_path: Path) -> None:
    tokenizer = genkit.Tokenizer(resolve_run(layered(None, TINY))).eval()
    sizes = [(32, 64), (64, 32), (64, 32)]
    images = [torch.rand(1, 3, *size) * 2 - 1 for size in sizes]
    each = [tokenizer.encode(image) for image in images]
    levels: list[Any] = [
        Ragged(
            torch.cat([level.flatten() for level in found]).int(),
            torch.tensor([level.shape[1:] for level in found], dtype=torch.int32),
        )
        for found in zip(*each, strict=True)
    ]
    path, model = tmp_path / "t.safetensors", tmp_path / "model.safetensors"
    save_tokens(Tokens.of(Rows(levels, ["a", "b", "c"]), model=fingerprint(tokenizer)), path)
    loaded = load_tokens(path, tokenizer)
    assert loaded.ragged
    assert loaded[0]["level0"].shape == each[0][0].shape[1:]
    for number, indices in enumerate(each):
        assert all(map(torch.equal, loaded.batch(number, number + 1), [i.int() for i in indices]))
    together = tokenizer.decode(loaded.batch(1, 3))
    alone = [torch.cat(level) for level in zip(*each[1:], strict=True)]
    assert torch.allclose(together, tokenizer.decode(alone))
    with pytest.raises(genkit.GenkitError, match="different sizes cannot be decoded in one batch"):
        loaded.batch(0, 2)
    genkit.save(tokenizer, model)
    code, text = invoke("decode", model, path, "--out", tmp_path / "out")
    assert code == 0, text
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_encoding_keeps_labels_and_records_its_inputs(tmp_path: Path) -> None:
    tokenizer = genkit.Tokenizer(resolve_run(layered(None, TINY))).eval()
    faces = Faces(FacesOptions(label="hair", heldout=9), (32, 32), 0)
    split = faces.split("heldout")
    save_tokens(encode(tokenizer, split, batch_size=4), tmp_path / "t")
    tokens = load_tokens(tmp_path / "t", tokenizer)
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [split.label(index) for index in range(9)]
    assert tokens.classes == LABELS["hair"]
    assert (tokens.source, tokens.precision) == (faces.fingerprint, "float32")
    assert list(tokens.names) == [split.name(index) for index in range(9)]
    assert list(tokens.captions) == [""] * 9


GRIDS = torch.tensor([[2, 2], [2, 2]], dtype=torch.int32)
HUGE = torch.tensor([[2**31 - 1, 2**31 - 1], [1, 1]], dtype=torch.int32)
DAMAGE: dict[str, tuple[Any, str]] = {
    "names": ({"name.offsets": torch.tensor([0, 9, 5])}, "offsets of its names do not match"),
    "ends": ({"name.offsets": torch.tensor([0, 5, 99])}, "offsets of its names do not match"),
    "bytes": ({"name.bytes": torch.full((13,), 255, dtype=torch.uint8)}, "decode byte 0xff"),
    "rows": ({"label": torch.zeros(3, dtype=torch.int64)}, r"label does not have the shape \[2\]"),
    "labels": ({"label": torch.tensor([2, 0])}, "labels are not numbers of its classes"),
    "below": ({"label": torch.tensor([-2, 0])}, "labels are not numbers of its classes"),
    "half": ({"caption.bytes": None}, r"captions are not bytes with 3 offsets"),
    "unnamed": ({"name.bytes": None, "name.offsets": None}, "it does not name its images"),
    "other": ({"extra": torch.zeros(1, dtype=torch.int32)}, "unknown names"),
    "flat": ({"level0": torch.zeros(8, dtype=torch.int32)}, "not int32"),
    "grids": (
        {"level0": torch.zeros(7, dtype=torch.int32), "level0.grid": GRIDS},
        "grids do not match",
    ),
    "huge": (
        {"level0": torch.zeros(8, dtype=torch.int32), "level0.grid": HUGE},
        "grids do not match",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_in_a_sentence(kind: str, tmp_path: Path) -> None:
    changes, message = DAMAGE[kind]
    path = tmp_path / "t.safetensors"
    save_tokens(full(), path)
    metadata, tensors = read_header(path)[0], {**load_file(path), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata)
    with pytest.raises(CheckpointError, match=rf"'{path}' is damaged: .*{message}"):
        load_tokens(path).check()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    info = {"schema": 1, "tokens": {"version": 3, "images": 2}}
    save_file({"level0": torch.zeros(1)}, path, {"genkit": json.dumps(info)})
    with pytest.raises(CheckpointError, match=r"version 3 of token files; .* use a newer genkit"):
        load_tokens(path)
