"""Token files: the schema in one file, ragged grids, old files, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, invoke
from genkit_datasets import FacesOptions
from genkit_datasets.faces import LABELS, Faces
from safetensors.torch import load_file, save_file

import genkit
from genkit.checkpoint.header import read_header
from genkit.checkpoint.model import fingerprint
from genkit.data.tokens import Ragged, Tokens, encode, load_tokens, save_tokens
from genkit.errors import CheckpointError
from genkit.run.options import layered, resolve_run


def full(**changes: Any) -> Tokens:
    """Two images of two levels, one level with two codebooks, with every optional field."""
    fine = torch.arange(8, dtype=torch.int32).reshape(2, 2, 2)
    coarse = torch.arange(4, dtype=torch.int32).reshape(2, 1, 1, 2)
    tokens = Tokens(
        [fine, coarse],
        ["a.png", "b/\u00e9.png"],
        "model",
        torch.tensor([1, -1]),
        ["a caption \U0001f600", ""],
        ["dog", "cat"],
        torch.tensor([[480, 640], [31, 7]], dtype=torch.int32),
        torch.tensor([[0, 0, 80, 480, 480, 0], [1, 5, 0, 7, 7, 1]], dtype=torch.int32),
        "source",
        "bfloat16",
    )
    return tokens._replace(**changes)


def alike(one: Tokens, other: Tokens) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(a == b)

    return all(map(same, one, other))


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tokens(full(), path)
    assert alike(load_tokens(path), full())
    bare = Tokens(full().levels, full().names, "model", classes=[])
    save_tokens(bare, path)
    assert alike(load_tokens(path), bare)


def test_names_and_captions_are_not_in_the_header(tmp_path: Path) -> None:
    names = [f"{number:0300}.png" for number in range(2000)]
    levels: list[Any] = [torch.zeros(2000, 1, 1, dtype=torch.int32)]
    save_tokens(Tokens(levels, names, "m", captions=names), tmp_path / "t")
    assert int.from_bytes((tmp_path / "t").read_bytes()[:8], "little") < 2000
    assert load_tokens(tmp_path / "t").names == load_tokens(tmp_path / "t").captions == names


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    """The format that genkit wrote before files had a version."""
    path = tmp_path / "old.safetensors"
    info = {"schema": 1, "tokens": {"names": ["a.png", "b/\u00e9.png"], "model": "m"}}
    tensors = {f"level{index}": level for index, level in enumerate(full().levels)}
    save_file(tensors, path, {"format": "pt", "genkit": json.dumps(info)})
    found = load_tokens(path)
    assert alike(found, Tokens(full().levels, ["a.png", "b/\u00e9.png"], "m", classes=[]))


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
    save_tokens(Tokens(levels, ["a", "b", "c"], fingerprint(tokenizer)), path)
    loaded = load_tokens(path, tokenizer)
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
    save_tokens(encode(tokenizer, split, 4), tmp_path / "t")
    tokens = load_tokens(tmp_path / "t", tokenizer)
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [split.label(index) for index in range(9)]
    assert tokens.classes == LABELS["hair"]
    assert (tokens.source, tokens.precision) == (faces.fingerprint, "float32")
    assert tokens.names == [split.name(index) for index in range(9)]
    assert tokens.captions is None


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
    "other": ({"extra": torch.zeros(1)}, "unknown names"),
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
        load_tokens(path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    info = {"schema": 1, "tokens": {"version": 3, "images": 2}}
    save_file({"level0": torch.zeros(1)}, path, {"genkit": json.dumps(info)})
    with pytest.raises(CheckpointError, match=r"version 3 of token files; .* use a newer genkit"):
        load_tokens(path)
