"""`genkit train --from`: what is taken from a checkpoint, what stays, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import genkit_here, invoke, rows, weights
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import genkit
from genkit.errors import GenkitError, OptionError, TrainingError

GOLDEN = Path(__file__).parent / "golden"
QUICK = {"steps": 2, "validation_images": 8, "batch_size": 4, "ema": 0.0, "report": False}


def tuned(start: Path, out: Path, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    genkit.train({"from_": str(start), **QUICK, **settings}, out=out)
    return weights(out)


equal = torch.equal


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The parts of a tokenizer with other weights than before."""
    return {name.split(".")[0] for name in before if not equal(before[name], after[name])}


def test_components_data_and_weights_are_the_models(trained: Path, tmp_path: Path) -> None:
    after = tuned(trained, tmp_path / "a", {"steps": 0})
    assert moved(weights(trained), after) == set()
    one, other = genkit.inspect(trained), genkit.inspect(tmp_path / "a")
    assert one["components"] == other["components"]
    assert one["training"]["data"] == other["training"]["data"]
    assert one["training"]["resolution"] == other["training"]["resolution"]
    everything = tuned(trained, tmp_path / "b", {})
    assert moved(weights(trained), everything) == {"encoder", "quantizers", "fusions", "decoder"}


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        (["decoder"], {"decoder"}),
        (["decoder", "discriminator"], {"decoder"}),
        (["encoder", "fusion"], {"encoder", "fusions"}),
        (["quantizer"], {"quantizers"}),
    ],
)
def test_parts_that_are_not_trained_stay(
    trainable: list[str], parts: set[str], trained: Path, tmp_path: Path
) -> None:
    against = "discriminator" in trainable
    discriminator = {"name": "patchgan", "width": [4, 4], "strides": [2, 2, 1]}
    judged = {"discriminator": discriminator, "discriminator_head_start": 1}
    settings = {"trainable": trainable, **(judged if against else {})}
    if trainable == ["quantizer"]:  # Averaged codes do not learn by gradient.
        settings["quantizer"] = {"update": "gradient"}
    assert moved(weights(trained), tuned(trained, tmp_path / "a", settings)) == parts
    if "encoder" not in trainable and "quantizer" not in trainable:
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        one, other = (genkit.load(path).encode(images) for path in (trained, tmp_path / "a"))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_fresh_discriminator_has_its_head_start(trained: Path, tmp_path: Path) -> None:
    """The head start leaves the weights as in a run without a discriminator."""
    early = {"steps": 3, "log_every": 1, "discriminator": "patchgan", "discriminator_head_start": 2}
    alone = tuned(trained, tmp_path / "alone", {"steps": 2})
    before = tuned(trained, tmp_path / "before", {**early, "steps": 2})
    assert all(equal(value, before[name]) for name, value in alone.items())
    tuned(trained, tmp_path / "judged", early)
    found = rows(tmp_path / "judged")
    assert ["discriminator" in row for row in found] == [True] * 3
    assert ["adversarial" in row for row in found] == [False, False, True]


def test_a_larger_codebook_keeps_its_first_codes(trained: Path, tmp_path: Path) -> None:
    after = tuned(trained, tmp_path / "a", {"quantizer": {"codebook_size": 24}, "steps": 0})
    for name, before in weights(trained).items():
        if name.endswith("codebook"):
            assert torch.equal(after[name][: len(before)], before)
            assert len(after[name]) == 24


@pytest.mark.parametrize(
    "changes", [{"resolution": 64}, {"encoder": {"levels": 3}}, {"decoder": "residual"}], ids=str
)
def test_what_fits_is_taken_and_listed(
    changes: Mapping[str, Any], trained: Path, tmp_path: Path
) -> None:
    done = genkit_here(
        *("train", "--from", trained, "--steps", "0", "--out", tmp_path / "a"),
        *[
            f"--{key}.levels=3" if isinstance(value, dict) else f"--{key}={value}"
            for key, value in changes.items()
        ],
    )
    assert done.returncode == 0, done.stderr
    before, after = weights(trained), weights(tmp_path / "a")
    kept = [name for name, value in before.items() if name in after and equal(after[name], value)]
    assert f"{len(kept)} of {len(after)} tensors come from" in done.stdout
    assert ("New: " in done.stdout) == (len(after) > len(kept))


def test_a_run_resumes_without_the_model_that_it_started_from(
    trained: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(trained, start)
    settings = {"trainable": ["decoder"], "optimizer": "adam"}
    tuned(start, tmp_path / "whole", {**settings, "steps": 4})
    tuned(start, tmp_path / "part", settings)
    shutil.rmtree(start)
    genkit.train({"steps": 4}, out=tmp_path / "part", resume=True)
    assert moved(weights(tmp_path / "whole"), weights(tmp_path / "part")) == set()
    origins = [genkit.inspect(tmp_path / name)["training"]["from"] for name in ("whole", "part")]
    assert origins[0] == origins[1]


def _card_of(run: Path, tmp_path: Path) -> str:
    assert genkit_here("push", run, "me/b", "--folder", tmp_path / "b").returncode == 0
    return (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_an_imported_model_is_fine_tuned_and_says_where_it_came_from(
    trained: Path, tmp_path: Path
) -> None:
    source = GOLDEN / "taming-vq" / "checkpoint.safetensors"
    start = genkit.import_model(source, tmp_path / "in")
    with pytest.raises(OptionError, match="does not record its training data: give --data"):
        tuned(start, tmp_path / "a", {})
    after = tuned(start, tmp_path / "a", {"data": "faces", "trainable": ["decoder"]})
    assert moved(load_file(start / "model.safetensors"), after) == {"decoder"}
    training = genkit.inspect(tmp_path / "a")["training"]
    assert training["from"]["imported"]["family"] == "taming"
    assert training["from"]["imported"]["licence"] == "MIT"
    card = _card_of(tmp_path / "a", tmp_path / "one")
    assert "Imported from `checkpoint.safetensors` (family taming, safetensors" in card
    assert "Fine-tuned from the weights with the fingerprint" in card
    assert "Origin" not in _card_of(trained, tmp_path / "two")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": ["quantizer"]}, "leaves nothing that learns by gradient"),
        ({"trainable": ["discriminator"]}, "--trainable discriminator needs --discriminator"),
        (
            {"trainable": ["discriminator"], "discriminator": "patchgan"},
            "names no part of the tokenizer",
        ),
        (
            {
                "encoder": {"name": "vqgan", "width": [24]},
                "decoder": "residual",
                "quantizer": "categorical",
            },
            "no tensor of .* fits the chosen components",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(
    settings: Mapping[str, Any], message: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenkitError, match=message):
        tuned(trained, tmp_path / "a", settings)


def test_images_of_other_channels_are_refused(trained: Path, tmp_path: Path) -> None:
    greys = TensorDataset(torch.rand(40, 1, 32, 32))
    with pytest.raises(TrainingError, match="takes images of 3 channels, the data have 1"):
        genkit.train({"from_": str(trained), **QUICK}, data=greys, out=tmp_path / "a")


def test_the_command_refuses_what_means_nothing(trained: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "a")]
    assert "--trainable would do nothing" in invoke("train", "--trainable", "decoder", *out)[1]
    shutil.copytree(trained, tmp_path / "a")
    code, said = invoke("train", "--resume", *out, "--from", trained)
    assert code
    assert "a resumed run has its own weights" in said
