"""`genkit evaluate`: which images it uses, and its figures by their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, flags, genkit_here, invoke, tiny_run
from PIL import Image


def test_evaluate_prints_the_documented_keys(trained: Path) -> None:
    figures = json.loads(invoke("evaluate", trained, "--data", "faces", "--json")[1])
    assert {"images", "psnr", "ssim", "mae", "mae_over_variance", "levels"} <= set(figures)
    assert figures["images"] == 16
    assert [set(level) for level in figures["levels"]] == [
        {"codebook_size", "active", "usage", "perplexity"}
    ] * 2
    again = json.loads(invoke("evaluate", trained, "--json", "--batch-size", "3")[1])
    assert again["psnr"] == pytest.approx(figures["psnr"], abs=1e-5)
    assert again["levels"] == figures["levels"]
    assert "PSNR" in invoke("evaluate", trained)[1]


def test_a_folder_is_evaluated_completely_unless_it_was_trained_on(
    photographs: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = genkit_here(
        "train",
        *flags({**TINY, "data": {}}),
        "--data",
        photographs,
        "--data.heldout",
        "0.3",
        "--out",
        run,
    )
    assert done.returncode == 0, done.stderr
    own = json.loads(invoke("evaluate", run, "--json")[1])
    named = json.loads(
        invoke("evaluate", run / "model.safetensors", "--data", photographs, "--json")[1]
    )
    other = json.loads(invoke("evaluate", trained, "--data", photographs, "--json")[1])
    assert own["protocol"]["split"] == named["protocol"]["split"] == "heldout"
    assert own["images"] == named["images"] < 12
    assert other["protocol"]["split"] == "all"
    assert other["images"] == 12


def test_images_that_changed_since_training_are_reported(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(run, {"data": {"name": str(photographs), "heldout": 0.3}, "steps": 0})
    before = genkit_here("evaluate", run, "--json")
    Image.new("RGB", (40, 40)).save(photographs / "new.png")
    after = genkit_here("evaluate", run, "--json")
    assert "have changed since" not in before.stderr
    assert "have changed since" in after.stderr
    first, second = (json.loads(done.stdout) for done in (before, after))
    assert second["protocol"]["split"] == "heldout"
    assert first["images"] <= second["images"] <= first["images"] + 1


def test_the_held_out_folder_is_evaluated(photographs: Path, tmp_path: Path) -> None:
    train, apart, run = photographs / "b", tmp_path / "apart", tmp_path / "run"
    (photographs / "a").rename(apart)
    done = genkit_here(
        "train",
        *flags({**TINY, "data": {}, "steps": 2}),
        *("--data", train, "--data.heldout-folder", "apart", "--out", run),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    cases = {
        (run,): "heldout",
        (run, "--data", train): "heldout",
        (run, "--data", apart): "all",
        (run, "--split", "train"): "train",
        # A model file alone does not name the folder, so training images are not excluded.
        (run / "model.safetensors", "--data", train): "all",
    }
    for args, split in cases.items():
        figures = json.loads(invoke("evaluate", *args, "--json")[1])
        assert figures["protocol"]["split"] == split, args
        assert figures["images"] == 6
    heldout, same = (
        json.loads(invoke("evaluate", run, *args, "--json")[1])["psnr"]
        for args in ((), ("--data", apart))
    )
    assert heldout == pytest.approx(same)


def test_figures_match_their_definitions(trained: Path) -> None:
    """Compared with plain numpy over all images at once."""
    from genkit_datasets import FacesOptions
    from genkit_datasets.faces import Faces

    import genkit
    from genkit.images import from_pixels

    figures = json.loads(invoke("evaluate", trained, "--json")[1])
    pixels = Faces(FacesOptions(heldout=16), (32, 32), 0).split("heldout").images(range(16))
    tokenizer = genkit.load(trained)
    with torch.no_grad():
        made = (
            tokenizer(from_pixels(pixels)).images.permute(0, 2, 3, 1).double().numpy().clip(-1, 1)
            + 1
        ) / 2
    real = pixels / 255
    psnr = -10 * np.log10(((real - made) ** 2).mean((1, 2, 3)))
    assert figures["psnr"] == pytest.approx(psnr.mean(), abs=1e-4)
    assert figures["mae"] == pytest.approx(np.abs(real - made).mean(), abs=1e-6)
    assert figures["mae_over_variance"] == pytest.approx(
        np.abs(real - made).mean() / real.var(), rel=1e-5
    )
    counts = np.bincount(tokenizer.encode(from_pixels(pixels))[0].flatten().numpy(), minlength=16)
    share = counts[counts > 0] / counts.sum()
    assert figures["levels"][0]["active"] == (counts > 0).sum()
    assert figures["levels"][0]["perplexity"] == pytest.approx(
        np.exp(-(share * np.log(share)).sum())
    )


def test_a_record_describes_its_measurement(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "a.json"
    args = ("--data", photographs, "--images", "7", "--out", out, "--json")
    record = json.loads(invoke("evaluate", trained, *args)[1])
    assert json.loads(out.read_text()) == record
    protocol = record["protocol"]
    assert {key: protocol[key] for key in ("data", "split", "resolution", "asked", "found")} == {
        "data": "folder",
        "split": "all",
        "resolution": 32,
        "asked": 7,
        "found": 7,
    }
    assert protocol["options"]["crops"] == 1
    # Paths on this machine are left out.
    assert "location" not in protocol["options"]
    assert str(photographs) not in out.read_text()
    assert {"genkit", "torch", "numpy", "pillow", "genkit-vq"} <= record["versions"].keys()
    assert record["model"]["path"] == str(trained)
    assert record["model"]["components"]["quantizer"]["options"]["codebook_size"] == 16
    assert record["model"]["training"] == {"step": 8, "seed": 0}
    assert record["precision"].startswith("float32")

    def hashes(*more: str) -> tuple[str, str]:
        other = json.loads(invoke("evaluate", trained, *args[:2], *more, "--json")[1])["protocol"]
        assert other["fingerprint"] == protocol["fingerprint"]
        return other["files"], other["pixels"]

    own = protocol["files"], protocol["pixels"]
    assert hashes("--images", "7", "--batch-size", "3") == own
    assert set(hashes("--images", "6")).isdisjoint(own)
    assert hashes("--images", "7", "--resolution", "16")[0] == own[0]
    assert hashes("--images", "7", "--resolution", "16")[1] != own[1]


def test_a_record_is_written_completely_or_not_at_all(trained: Path, tmp_path: Path) -> None:
    code, text = invoke("evaluate", trained, "--out", tmp_path / "a.txt")
    assert code == 2
    assert "must end in .json" in text
    blocked = tmp_path / "file"
    blocked.touch()
    code, text = invoke("evaluate", trained, "--images", "1", "--out", blocked / "a.json")
    assert code == 1
    assert "cannot be written" in text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_with_nan_output_has_no_figures(trained: Path, tmp_path: Path) -> None:
    import genkit

    tokenizer = genkit.load(trained)
    for value in tokenizer.decoder.parameters():
        value.data.fill_(float("nan"))
    genkit.save(tokenizer, tmp_path / "m.safetensors")
    code, text = invoke("evaluate", tmp_path / "m.safetensors", "--data", "faces", "--images", "2")
    assert code == 1
    assert "its training diverged" in text


def test_images_without_variance_have_no_relative_error(trained: Path, tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / f"{number}.png")
    code, text = invoke("evaluate", trained, "--data", tmp_path, "--json")
    assert code == 0
    assert json.loads(text)["mae_over_variance"] is None
    assert "MAE/var -" in invoke("evaluate", trained, "--data", tmp_path)[1]
