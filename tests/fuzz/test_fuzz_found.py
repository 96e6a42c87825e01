"""Regression tests for bad input that once caused a failure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke
from fuzz.mutations import Parts, assembled, parts_of
from fuzz.watch import watched
from test_checkpoint import build, rewrite
from torch import nn

import genkit
from genkit.checkpoint.header import read_header
from genkit.checkpoint.model import fingerprint
from genkit.errors import CheckpointError, GenkitError, TrainingError
from genkit.run.config import newest_directory
from genkit.run.toml import read_config
from genkit.tokens.dataset import Tokens, load_tokens, save_tokens
from genkit.tokens.rows import Rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    genkit.save(build(quantizer={"codebook_size": 16}), path)
    return path


@pytest.fixture
def parts(model: Path) -> Parts:
    return parts_of(model)


def refused(path: Path, *reads: Callable[[Path], Any]) -> str:
    for read in reads or (genkit.inspect, genkit.load):
        with watched([path], seconds=20, megabytes=700), pytest.raises(CheckpointError) as caught:
            read(path)
    return str(caught.value)


@pytest.mark.parametrize("size", [10**6, 10**9, 10**15, 10**30])
def test_a_model_too_large_for_its_file_takes_no_memory(model: Path, size: int) -> None:
    rewrite(
        model,
        lambda info: info["components"]["quantizer"]["options"].update(codebook_size=size),
    )
    text = refused(model, genkit.load)
    assert "do not fit" in text or "cannot be built" in text


@pytest.mark.parametrize("field", ["encoder", "decoder"])
@pytest.mark.parametrize("blocks", [10**5, 10**12])
def test_a_model_with_too_many_blocks_is_refused(model: Path, field: str, blocks: int) -> None:
    rewrite(model, lambda info: info["components"][field]["options"].update(blocks=blocks))
    start = time.monotonic()
    refused(model, genkit.load)
    assert time.monotonic() - start < 20


def test_a_class_that_cannot_be_built_on_meta_is_built_anyway(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_usually = nn.Conv2d.__init__

    def asks(self: nn.Conv2d, *args: Any, **options: Any) -> None:
        torch.ones(1).item()
        build_usually(self, *args, **options)

    before = genkit.load(model).state_dict()
    monkeypatch.setattr(nn.Conv2d, "__init__", asks)
    after = genkit.load(model).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**18, 10**18]},
        {"shape": [10**4000] * 50},
        {"dtype": "F4"},
        {"dtype": "X"},
        {"shape": [1] * 9},
    ],
    ids=range(5),
)
def test_a_shape_that_does_not_match_its_bytes(
    model: Path, parts: Parts, change: dict[str, Any]
) -> None:
    name = next(iter(parts.tensors))
    tensors = {**parts.tensors, name: {**parts.tensors[name], **change}}
    model.write_bytes(assembled(tensors, parts.info, parts.body))
    assert "\n" not in refused(model, genkit.load).partition("\nIt was saved")[0]


def test_overlapping_tensors(model: Path, parts: Parts) -> None:
    entries = sorted(parts.tensors.items(), key=lambda item: item[1]["data_offsets"])
    (first, entry), (other, _), *_ = [item for item in entries if item[1]["shape"] == [8]]
    model.write_bytes(assembled({**parts.tensors, other: entry}, parts.info, parts.body))
    assert "cannot be loaded" in refused(model, genkit.load), first


@pytest.mark.parametrize("name", ["\ud800", "../../\udfff"])
def test_a_tensor_whose_name_is_not_text(model: Path, parts: Parts, name: str) -> None:
    first = next(iter(parts.tensors))
    tensors = {name if key == first else key: value for key, value in parts.tensors.items()}
    model.write_bytes(assembled(tensors, parts.info, parts.body))
    assert "has another structure" in refused(model)


def test_a_header_in_another_encoding(model: Path, parts: Parts) -> None:
    header = json.dumps(parts.tensors).encode("utf-16")
    model.write_bytes(len(header).to_bytes(8, "little") + header + parts.body)
    assert "its header is not JSON" in refused(model)


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"kind": "a", "name": "b", "distribution": "", "options": {"x": value}}
    return value


@pytest.mark.parametrize("levels", [80, 400])
def test_metadata_nested_deeply(model: Path, levels: int) -> None:
    rewrite(model, lambda info: info["training"].update(x=nested(levels)))
    assert "nested too deeply" in refused(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["components"].update(more={"a": 1}),
        lambda info: info["components"].update(more=5),
        lambda info: info["components"]["encoder"].pop("distribution"),
        lambda info: info["components"]["encoder"].update(distribution=[]),
        lambda info: info["training"].update(note="\ud800"),
    ],
)
def test_unreadable_metadata(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite(model, change)
    assert "is damaged" in refused(model)
    code, text = invoke("inspect", model)
    assert code == 1, text


def test_training_facts_of_any_form_are_shown(model: Path) -> None:
    rewrite(model, lambda info: info["training"].update(x={"name": "a", "options": 5}))
    assert invoke("inspect", model)[0] == 0


@pytest.mark.parametrize("facts", [{"seed": "x"}, {"seed": -1}, {"resolution": 2**40}])
def test_training_facts_that_no_data_set_accepts(model: Path, facts: dict[str, Any]) -> None:
    faces = {"resolution": 32, "data": {"name": "faces"}}
    rewrite(model, lambda info: info["training"].update({**faces, **facts}))
    assert invoke("evaluate", model)[0] in (1, 2)


def test_a_component_of_another_kind_is_refused(model: Path) -> None:
    """Another kind would declare other options as local to one machine."""
    entry = {"kind": "dataset", "name": "faces", "distribution": "", "options": {"weights": "/x"}}
    rewrite(model, lambda info: info["components"].update(encoder=entry))
    with watched([model]), pytest.raises(GenkitError, match="no encoder 'faces'"):
        genkit.load(model)


def test_a_file_that_changes_while_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import genkit.checkpoint.model as module

    monkeypatch.setattr(module, "load_file", lambda path: {})
    with pytest.raises(CheckpointError, match="changed while it was read"):
        genkit.load(model)


@pytest.mark.parametrize("shape", [(1, 0, 4), (1, 0, 0), (0, 2, 2)])
def test_empty_index_grids(model: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    tokenizer = genkit.load(model)
    levels = [torch.zeros(shape, dtype=torch.int32) for _ in tokenizer.levels]
    path = tmp_path / "tokens.safetensors"
    save_tokens(Tokens.of(Rows(levels, ["a"] * shape[0]), model=fingerprint(tokenizer)), path)
    code, text = invoke("decode", model, path, "--out", tmp_path / "out")
    assert code in (0, 1), text
    assert not (tmp_path / "out").exists()


def test_one_invalid_index_leaves_nothing_half_written(model: Path, tmp_path: Path) -> None:
    tokenizer = genkit.load(model)
    levels = [level.int() for level in tokenizer.encode(torch.zeros(3, 3, 32, 32))]
    levels[0][-1, 0, 0] = 16
    path = tmp_path / "tokens.safetensors"
    save_tokens(Tokens.of(Rows(levels, ["a", "b", "c"]), model=fingerprint(tokenizer)), path)
    code, text = invoke("decode", model, path, "--out", tmp_path / "out", "--batch-size", "1")
    assert code == 1, text
    assert "must lie between 0 and 15" in text
    assert not (tmp_path / "out").exists()
    assert load_tokens(path).names == ["a", "b", "c"]


def test_a_config_with_a_huge_number(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("seed = 0x" + "f" * 5000)
    with pytest.raises(TrainingError, match="64 bits"):
        read_config(tmp_path / "c.toml")


def test_a_run_with_a_broken_link_can_be_the_newest(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.toml").write_text("")
    (run / "log").symlink_to("nowhere")
    assert newest_directory(tmp_path / "runs") == run


@pytest.mark.parametrize("place", ["~nobody/x", "~nobody/a.tar", "a\0b", "x" * 5000])
def test_locations_that_do_not_exist(tmp_path: Path, model: Path, place: str) -> None:
    code, text = invoke("encode", model, place, "--out", tmp_path / "out", "--resolution", 32)
    assert code in (1, 2), text


def test_reading_a_header_does_not_block_on_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    os.mkfifo(path)
    with watched([], seconds=5), pytest.raises(GenkitError, match="there is no file"):
        read_header(path)
