"""Arbitrary command lines: they succeed, or print one message and exit with 1 or 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import invoke
from fuzz.counts import counted
from fuzz.watch import explore, watched
from genkit_cli.main import COMMANDS
from hypothesis import strategies as st

from genkit.run.options import TokenizerRun

# No NUL: the system cannot pass it as an argument.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
WORDS = st.sampled_from(
    [
        *COMMANDS,
        *("--help", "--out", "out", "--config", "--preset", "--resume", "--json", "--", "-", "="),
        *("--no-flip", "--data", "--encoder", "--data=", "hf:", "~nobody", "shards", "hf:~nobody"),
        *("a{00..99}.tar", "{0..99999999}.tar", "x" * 5000, "9" * 5000, "-1", "1e999", "nan"),
        *("../..", "/", "/dev/zero", "model.safetensors", "config.toml", "default", ",", "\udcff"),
        *("default,default", "aren", "vq", "none", "pixel", "timm", "folder", "faces", "0"),
        *("--resolution", "--batch-size"),
    ]
)
FLAGS = st.sampled_from([f"--{name}" for name in TokenizerRun.__dataclass_fields__]) | st.builds(
    "--{}.{}".format,
    st.sampled_from(["encoder", "quantizer", "data", "decoder", "encoder.attention"]),
    st.sampled_from(["name", "levels", "width", "codebook-size", "heldout", "location", "x"]),
)
LINES = st.tuples(
    st.sampled_from(["train"] * 4 + list(COMMANDS)), st.lists(WORDS | FLAGS | TEXT, max_size=7)
)


@counted("command")
def test_arbitrary_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    import genkit_cli.launch

    import genkit.checkpoint.hub
    import genkit.training.loop
    from genkit.errors import CheckpointError

    def refuse(*args: Any, **options: Any) -> None:
        raise CheckpointError("this is as far as a test goes")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["genkit", "train"])
    monkeypatch.setattr(genkit.training.loop, "train", refuse)
    monkeypatch.setattr(genkit_cli.launch, "launch", refuse)
    monkeypatch.setattr(genkit.checkpoint.hub, "fetch", refuse)
    (tmp_path / "config.toml").write_text("steps = 3\nencoder = {name = 'timm', levels = 2}\n")
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    before = sorted(tmp_path.iterdir())
    for warm in (
        ["train", "--help"],
        ["components"],
        ["plugins"],
        ["decode", "x", "y", "--out", "z"],
    ):
        invoke(*warm)

    def check(line: tuple[str, list[str]]) -> None:
        command, args = line
        # These would fetch data from the hub, which a test must not do.
        if command == "push" or any(arg.startswith("hf") and "~" not in arg for arg in args):
            command = "inspect"
        with watched([tmp_path], seconds=10):
            code, text = invoke(command, *args)
        assert code in (0, 1, 2), text
        assert "Traceback" not in text
        assert code == 0 or text.strip()
        assert sorted(tmp_path.iterdir()) == before

    explore(LINES, check, count)
