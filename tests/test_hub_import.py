"""`genkit import hf://…`, on a fake hub on 127.0.0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_server import Hub, at
from safetensors.torch import load_file, save

GOLDEN = Path(__file__).parent / "golden" / "taming-vq"


@pytest.fixture
def theirs(hub: Hub) -> Hub:
    """A repository with a tokenizer in a folder, in two forms, beside files of no use."""
    weights = (GOLDEN / "checkpoint.safetensors").read_bytes()
    hub.commit(
        "they/model",
        {
            "README.md": b"a model",
            "model_index.json": b"{}",
            "vqvae/config.json": (GOLDEN / "config.json").read_bytes(),
            "vqvae/model.safetensors": weights,
            "vqvae/model.bin": b"a pickle that nobody needs",
        },
    )
    return hub


def test_a_folder_of_the_hub_is_imported(theirs: Hub, tmp_path: Path) -> None:
    address = "hf://they/model/vqvae"
    done = at(theirs.url, tmp_path, "import", address, "--out", "a", "--check", "none")
    assert done.returncode == 0, done.stderr
    assert "Family: taming" in done.stdout
    fetched = [each for each in theirs.requests if each.startswith("GET")]
    assert not [each for each in fetched if each.endswith((".bin", "README.md"))]
    shown = at(theirs.url, tmp_path, "inspect", "a").stdout
    assert f"source = {address}" in shown
    assert "resolution = 16" in shown
    # From the cache, without a network.
    done = at(
        *(theirs.url, tmp_path, "import", address, "--out", "b", "--check", "none"),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr


def test_only_the_shards_with_the_tokenizer_are_fetched(hub: Hub, tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "checkpoint.safetensors")
    held = {f"model.vqmodel.{name}": value for name, value in tensors.items()}
    table = {**dict.fromkeys(held, "b.safetensors"), "lm_head.weight": "a.safetensors"}
    files = {
        "a.safetensors": save({"lm_head.weight": torch.zeros(2)}),
        "b.safetensors": save(held),
        "config.json": (GOLDEN / "config.json").read_bytes(),
        "model.safetensors.index.json": json.dumps({"weight_map": table}).encode(),
    }
    hub.commit("they/large", files)
    done = at(*(hub.url, tmp_path, "import", "hf://they/large", "--out", "a"), "--check", "none")
    assert done.returncode == 0, done.stderr
    fetched = {each.rpartition("/")[2] for each in hub.requests if each.startswith("GET")}
    assert "b.safetensors" in fetched
    assert "a.safetensors" not in fetched


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://they/nothing", "'they/nothing' is not on the hub"),
        ("hf://they", "is not the address of a model: write hf://owner/name"),
        ("hf://they/model/../x", "is not the address of a model"),
        ("hf://they/model/other", "holds no file with weights; it holds README.md"),
    ],
)
def test_addresses_that_do_not_fit_are_refused(
    address: str, message: str, theirs: Hub, tmp_path: Path
) -> None:
    done = at(theirs.url, tmp_path, "import", address, "--out", "a")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "a").exists()
