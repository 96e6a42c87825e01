"""Settings beside another project's checkpoint: YAML and JSON, hostile ones included."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from genkit.errors import CheckpointError, GenkitError
from genkit.foreign.config import facts_of_yaml

YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params: &all
    embed_dim: 256
    ddconfig: {double_z: false, ch_mult: [1, 1, 2, 2, 4], dropout: 0.0, made: 2020-01-02}
again: *all
"""


def test_settings_beside_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    params = {
        "embed_dim": 256,
        "ddconfig": {"double_z": False, "ch_mult": [1, 1, 2, 2, 4], "dropout": 0.0},
    }
    assert facts_of_yaml(path) == {
        "model": {
            "base_learning_rate": 4.5e-06,
            "target": "taming.models.vqgan.VQModel",
            "params": params,
        },
        "again": params,
    }
    path.write_text(json.dumps({"a": [1, None, 1e-05], "b": "\t"}))
    assert facts_of_yaml(path) == {"a": [1, None, 1e-05], "b": "\t"}


@pytest.mark.parametrize(
    "text",
    [
        "- 1",
        "",
        "a: [",
        "a: !!python/object/apply:os.system [true]",
        "a: !!python/name:os.system",
        "[" * 50_000,
        "a:\n" + "- " * 20_000,
        '{"a":' * 50_000,
        "a: " + "x" * 2**18,
        "a: &a [x, x]\n"
        + "".join(
            f"a{each}: &a{each} [*a{each - 1 or ''}, *a{each - 1 or ''}]\n" for each in range(1, 49)
        ),
        "a: *a",
        "a: &a [*a]\n" + "b: *a\n" * 200,
        "a: " + "9" * 9000,
        "? [1, 2]\n: 3\n? {}\n: 1",
        "a: \x00",
    ],
    ids=range(15),
)
def test_settings_that_are_hostile_or_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(GenkitError, match=r"x\.yaml"):
        facts_of_yaml(path)
    assert set(sys.modules) == before
    with pytest.raises(GenkitError, match="there is no file"):
        facts_of_yaml(tmp_path)


def test_settings_that_merge_again_and_again(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    for each in range(1, 49):
        lines += [f"a{each}: &a{each}", f"  <<: [*a{each - 1}, *a{each - 1}]"]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines))
    try:  # PyYAML since 6.0.4 merges them fast.
        assert facts_of_yaml(path)["a48"] == {"x": 1}
    except CheckpointError as error:
        assert "merges too many" in str(error)  # noqa: PT017
