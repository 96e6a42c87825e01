"""The benchmark of tiles, without its runs, and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

import genkit
from benchmarks import tiles
from genkit.plugin.registry import registry
from genkit.run.options import layered, resolve_run

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "large-images.md").read_text(encoding="utf-8")


def test_every_encoder_and_decoder_is_measured() -> None:
    runs = [resolve_run(layered(None, model)).tokenizer for model in tiles.MODELS.values()]
    assert {run.encoder.name for run in runs} == {*registry().names("encoder")}
    # A tokenizer whose file holds no decoder cannot decode.
    assert {run.decoder.name for run in runs} == {*registry().names("decoder")} - {"no-decoder"}


def test_the_page_has_the_measured_figures() -> None:
    figures = json.loads((DOCS / "performance" / "tiles.json").read_text(encoding="utf-8"))
    assert figures["seams"].keys() == tiles.MODELS.keys()
    assert not figures["quick"]
    for text in tiles.page(figures).values():
        assert text in PAGE


def test_what_a_process_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tiles._cost(64, 64)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"tile", "gib", "encode", "decode"}
    assert 0.1 < found["gib"] < 100


@pytest.mark.slow
def test_a_large_picture_takes_less_than_two_gigabytes() -> None:
    assert tiles.cost(1024, 4096)["gib"] * 2**30 < 2e9


def test_the_picture_has_four_portraits() -> None:
    picture = tiles.picture(64)
    assert picture.shape == (1, 64, 64, 3)
    quarters = [picture[0, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    assert all(not np.array_equal(quarters[0], other) for other in quarters[1:])


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    small = {kind: TINY[kind] for kind in ("encoder", "decoder", "quantizer")}
    tokenizer = genkit.Tokenizer(resolve_run(layered(None, small)).tokenizer)
    (tmp_path / "runs").mkdir()
    genkit.save(tokenizer, tmp_path / "runs" / "faces")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for large, less in (("1536, 2048", "64, 160"), ("tile=1024", "tile=128")):
        assert large in code
        code = code.replace(large, less)
    names: dict[str, Any] = {}
    exec(compile(code, "large-images.md", "exec"), names)
    assert names["pixels"].shape == (1, 64, 160, 3)
