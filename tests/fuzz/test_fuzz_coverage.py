"""Files and command lines from a coverage-guided fuzzer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from conftest import lacking
from fuzz.counts import counted
from test_checkpoint import build

import genkit
from genkit.run.options import layered, resolve_run
from genkit.settings import settings_of
from genkit.tokens.dataset import Tokens, save_tokens
from genkit.tokens.rows import Rows

pytestmark = pytest.mark.skipif(
    bool(lacking("atheris")), reason="needs atheris: uv sync --all-groups"
)
WORDS = [
    *("schema", "components", "options", "distribution", "kind", "name", "training", "levels"),
    *("data_offsets", "shape", "dtype", "__metadata__", "genkit", "tokens", "names", "level0"),
    *("encoder", "quantizer", "fusion", "decoder", "codebook_size", "stride", "none", "null"),
    *("NaN", "1e999", "-1", "9999999999999999999999", "--preset", "--encoder", "timm", "[[", "{"),
]


@counted("coverage")
def test_coverage_guided_cases(tmp_path: Path, count: int) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    path = tmp_path / "model.safetensors"
    genkit.save(build(), path)
    tokens = Tokens.of(Rows([torch.zeros(1, 2, 2, dtype=torch.int32)], ["a"]), model="m")
    save_tokens(tokens, tmp_path / "tokens")
    for number, file in enumerate((path, tmp_path / "tokens"), 1):
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        (corpus / f"header{number}").write_bytes(bytes([number]) + content[8:end])
    (corpus / "file").write_bytes(b"\4" + (tmp_path / "tokens").read_bytes())
    config = tomli_w.dumps(settings_of(resolve_run(layered(None))))
    (corpus / "config").write_bytes(b"\0" + config.encode())
    (corpus / "line").write_bytes(b"\5--encoder\ntimm\n--quantizer.codebook-size\n16\n--steps=3")
    (tmp_path / "words").write_text("".join(f'"{word}"\n' for word in WORDS))
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("target.py")),
            str(tmp_path),
            str(corpus),
            f"-runs={count}",
            "-seed=1",
            "-max_len=20000",
            "-timeout=10",
            "-rss_limit_mb=2048",
            f"-dict={tmp_path / 'words'}",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
    )
    found = [file for kind in ("crash", "timeout", "oom") for file in tmp_path.glob(f"{kind}-*")]
    inputs = "\n".join(repr(file.read_bytes()) for file in found)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}\n{inputs}"
    done_line = re.search(r"Done (\d+) runs in \d+ second", done.stderr)
    assert done_line, done.stderr[-3000:]
    print(f"{done_line[0]}s")
    assert int(done_line[1]) >= count
