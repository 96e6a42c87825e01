"""Checkpoints, token files and TOML of any content: read, or refused with a message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from conftest import invoke
from fuzz.counts import FULL, counted
from fuzz.mutations import NASTY, assembled, changed, changes, files, parts_of, spoilt
from fuzz.watch import explore, watched
from hypothesis import strategies as st
from test_checkpoint import build

import genkit
from genkit.errors import GenkitError
from genkit.run.options import layered, resolve_run
from genkit.run.toml import read_config
from genkit.settings import settings_of
from genkit.tokens.dataset import Tokens, load_tokens, save_tokens
from genkit.tokens.rows import Rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "whole.safetensors"
    torch.manual_seed(0)
    genkit.save(build(encoder={"attention": "pixel"}, quantizer={"codebook_size": 16}), path)
    genkit.load(path)  # Does all imports before the cases run.
    return path


@pytest.fixture(scope="module")
def tokens(model: Path) -> Path:
    path = model.with_name("tokens.safetensors")
    tokenizer = genkit.load(model)
    levels = tokenizer.encode(torch.zeros(2, 3, 32, 32))
    indices = [level.to(torch.int32) for level in levels]
    made_by = genkit.checkpoint.model.fingerprint(tokenizer)
    save_tokens(Tokens.of(Rows(indices, ["a.png", "b/c.png"]), model=made_by), path)
    return path


def reads(path: Path, read: Callable[[Path], Any], **bounds: Any) -> Callable[[bytes], None]:
    """A check that a file with some content is read, or refused with one of genkit's errors."""

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with watched([path], **bounds), suppress(GenkitError):
            read(path)

    return check


@counted("bytes")
def test_a_checkpoint_with_arbitrary_bytes(model: Path, tmp_path: Path, count: int) -> None:
    check = reads(tmp_path / "m.safetensors", genkit.inspect, seconds=5)
    explore(spoilt(model.read_bytes()), check, count)


@counted("inspect")
def test_a_checkpoint_with_mutated_json_is_inspected(
    model: Path, tmp_path: Path, count: int
) -> None:
    def printed(path: Path) -> None:
        info = genkit.inspect(path)
        json.dumps(info).encode()
        if info["bytes"] % 8 == 0:
            assert invoke("inspect", path)[0] == 0

    check = reads(tmp_path / "m.safetensors", printed, seconds=5)
    explore(files(parts_of(model)), check, count)


@counted("load")
def test_a_checkpoint_with_mutated_json_is_loaded(model: Path, tmp_path: Path, count: int) -> None:
    check = reads(tmp_path / "m.safetensors", genkit.load)
    explore(files(parts_of(model)), check, count)


@counted("tokens")
def test_a_mutated_token_file(tokens: Path, tmp_path: Path, count: int) -> None:
    check = reads(tmp_path / "t.safetensors", lambda path: load_tokens(path).check(), seconds=5)
    explore(files(parts_of(tokens)) | spoilt(tokens.read_bytes()), check, count)


@counted("decode")
def test_indices_are_decoded_completely_or_not_at_all(
    model: Path, tokens: Path, tmp_path: Path, count: int
) -> None:
    path, out = tmp_path / "t.safetensors", tmp_path / "out"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with watched([path, model], [out]):
            code, text = invoke("decode", model, path, "--out", out, "--batch-size", 1)
        assert code in (0, 1), text
        assert code == 0 or not out.exists()
        if out.exists():
            assert all(file.parent == out for file in out.iterdir())
            for file in out.iterdir():
                file.unlink()
            out.rmdir()

    parts = parts_of(tokens)
    wrong = st.lists(st.sampled_from([0, 1, 15, 16, -1, 2**31 - 1]), min_size=1, max_size=3).map(
        lambda values: assembled(
            parts.tensors,
            parts.info,
            parts.body[: -4 * len(values)]
            + b"".join(value.to_bytes(4, "little", signed=True) for value in values),
        )
    )
    explore(files(parts) | wrong, check, count)


def settled(path: Path) -> None:
    """Read a config as `genkit train --config` does."""
    resolve_run(layered(None, read_config(path)))


@counted("toml")
def test_a_mutated_config(tmp_path: Path, count: int) -> None:
    whole = settings_of(resolve_run(layered(None)))
    check = reads(tmp_path / "c.toml", settled, seconds=5)

    def written(settings: Any) -> bytes:
        try:
            return tomli_w.dumps(settings).encode("utf-8", "surrogatepass")
        # TOML has no null and no integers above 64 bits, and the writer no deep nesting.
        except (TypeError, ValueError, RecursionError):
            return json.dumps(settings).encode()

    explore(changes.map(lambda todo: written(changed(whole, todo))), check, count)


@counted("toml text")
def test_a_config_of_arbitrary_text(tmp_path: Path, count: int) -> None:
    whole = tomli_w.dumps(settings_of(resolve_run(layered(None)))).encode()
    check = reads(tmp_path / "c.toml", settled, seconds=5)
    values = st.sampled_from([json.dumps(value) for value in NASTY]) | st.text(max_size=20)
    keys = st.sampled_from(
        ["steps", "data", "encoder", "encoder.name", "data.name", "betas", "a.b"]
    )
    lines = st.builds("{} = {}".format, keys, values) | st.text(max_size=30)
    text = st.lists(lines, max_size=6).map(lambda many: "\n".join(many).encode("utf-8", "replace"))
    explore(text | spoilt(whole), check, count)


@pytest.mark.parametrize(
    "text",
    [
        "steps = " + "[" * 50_000,
        "a = " + "{a=" * 3_000 + "1" + "}" * 3_000,
        "seed = 0x" + "f" * 9_000,
        "seed = " + "9" * 9_000,
        "data = '\\u0000'",
        "[data]\nname = [1]",
    ],
    ids=range(6),
)
def test_toml_that_is_slow_or_deep(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with watched([path], seconds=10), pytest.raises(GenkitError):
        settled(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "gone", "long"])
def test_paths_that_are_not_regular_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        path = tmp_path / ("x" * 5000)
    for read in (genkit.inspect, genkit.load, load_tokens, settled):
        with watched([], seconds=5), pytest.raises(GenkitError):
            read(path)
    for args in (["inspect", path], ["train", "--config", path], ["encode", path, path]):
        with watched([], seconds=5):
            assert invoke(*args, "--out", tmp_path / "out")[0] in (1, 2)


def test_a_hundred_thousand_cases() -> None:
    assert sum(FULL.values()) >= 100_000
