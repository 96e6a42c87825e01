"""Priors on the hub: pushed with their tokenizer and a card, and drawn from by their address."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import (
    genkit_here,
    invoke,
    rows,
    weights,
)
from hub_server import Hub, at

import genkit


@pytest.fixture(scope="module")
def prior(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny prior with classes, which keeps its best weights."""
    out = tmp_path_factory.mktemp("prior") / "run"
    settings = {
        "prior": {"name": "masked", "width": 16, "depth": 1, "heads": 2},
        "data": {"heldout": 8, "size": 100},
        "labels": "hair",
        "keep_best": True,
        **{"steps": 4, "batch_size": 8, "warmup": 0, "validation_images": 8, "shown": 2},
        **{"log_every": 1, "validate_every": 1, "cache_tokens": str(out.parent / "cache")},
    }
    genkit.train_prior(trained, settings, out=out)
    return out


@pytest.mark.slow
def test_a_pushed_prior_draws_by_its_address(prior: Path, hub: Hub, tmp_path: Path) -> None:
    pushed = at(hub.url, tmp_path, "push", prior, "me/prior", HF_TOKEN="writes")
    assert pushed.returncode == 0, pushed.stderr
    assert 'genkit.load_prior("hf://me/prior")' in pushed.stdout
    folder = hub.snapshot("me/prior", "main")
    assert folder
    assert {path.name for path in folder.iterdir()} == {
        ".gitattributes",
        "README.md",
        "config.toml",
        "model.safetensors",
        "samples.png",
        "tokenizer.safetensors",
    }
    hub.requests.clear()
    draw = ("sample", "hf://me/prior", "--number", "2", "--out")
    drawn = at(hub.url, tmp_path, *draw, tmp_path / "drawn")
    assert drawn.returncode == 0, drawn.stderr
    files = {request.rpartition("/")[2] for request in hub.requests if "GET" in request}
    assert files == {"model.safetensors", "tokenizer.safetensors"}
    offline = at(hub.url, tmp_path, *draw, tmp_path / "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert invoke("sample", prior, "--number", "2", "--out", tmp_path / "own")[0] == 0
    for out in ("drawn", "offline"):
        pictures = [tmp_path / where / "00001.png" for where in (out, "own")]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
    hub.commit("me/alone", {"model.safetensors": (prior / "model.safetensors").read_bytes()})
    alone = at(hub.url, tmp_path, "sample", "hf://me/alone", "--out", tmp_path / "alone")
    assert alone.returncode == 1
    assert "'me/alone' has no tokenizer.safetensors" in alone.stderr


def test_the_card_of_a_prior(prior: Path, trained: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    code, output = invoke("push", prior, "me/prior", "--folder", tmp_path / "out")
    assert code == 0, output
    for path in (tmp_path / "out").iterdir():
        for local in (tmp_path, trained, prior):
            assert str(local).encode() not in path.read_bytes(), path.name
    best = min((row["validation"] for row in rows(prior)), key=lambda each: each["nats"])
    step = genkit.inspect(prior)["training"]["step"]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    (result,) = card.data.eval_results or []
    assert result.metric_value == pytest.approx(best["bits_per_pixel"], abs=1e-6)
    assert result.metric_name == "bits per pixel (upper bound)"
    for part in (
        f"| {best['bits_per_pixel']:.3f} | {best['plain_bits_per_pixel']:.3f} |",
        f"The validation at step {step}: 8 held-out images of the data set `faces` at 32 x 32",
        f"| 4 x 4 | {best['levels'][1]['bits_per_pixel']:.3f} |",
        "classes: bald, black",
        "(samples.png)",
        "classes=['bald'] * 16)  # [16, 3, 32, 32]",
        "genkit sample hf://me/prior --number 16 --classes 0 --out pictures",
        "given the data.",
    ):
        assert part in card.text, part
    assert genkit.load_prior(tmp_path / "out").classes[0] == "bald"
    again = genkit_here(
        *("train-prior", "tokenizer.safetensors", "--config", "config.toml", "--steps", "0"),
        *("--out", tmp_path / "again"),
        cwd=tmp_path / "out",
    )
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path / "again").keys() == weights(prior).keys()


def test_a_prior_alone_is_published_with_its_tokenizer(prior: Path, tmp_path: Path) -> None:
    run = tmp_path / "files"
    run.mkdir()
    shutil.copy(prior / "model.safetensors", run / "some.safetensors")
    push = ("push", run / "some.safetensors", "me/prior", "--folder", tmp_path / "out")
    code, output = invoke(*push)
    assert (code, "is a prior without its tokenizer" in output) == (1, True)
    shutil.copy(prior / "tokenizer.safetensors", run)
    assert invoke(*push)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.safetensors",
        "tokenizer.safetensors",
    }
    assert "None are stored" in (tmp_path / "out" / "README.md").read_text()
    assert genkit.load_prior(tmp_path / "out").size == (32, 32)
