"""Decoding of tokens, their summary, and damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import genkit_command, genkit_here, invoke
from photographs import BATCHES, Stop, contents, stop_at
from PIL import Image

import genkit
from genkit.errors import CheckpointError, GenkitError, OptionError
from genkit.tokens.decode import decode


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
    used = tokens.levels[0].unique()
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
