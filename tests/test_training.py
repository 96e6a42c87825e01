"""Training in this process: the files it writes, how it resumes, what each part computes."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Silent, comparable, rows, same, tiny_run, weights
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from PIL import Image

import genkit
from genkit.data.order import DrawSampler
from genkit.errors import DataError, OptionError, TrainingError
from genkit.interfaces import Quantized
from genkit.run.directory import RunDirectory
from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.run.state import load_state
from genkit.training.ema import EMA
from genkit.training.optimizers import learning_rate
from genkit.training.processes import join, make_accelerator


def run(**settings: Any) -> TokenizerRun:
    return resolve_run(layered(None, TINY, settings))


# Values that differ between any two runs.


def test_a_run_directory_holds_the_documented_files(trained: Path) -> None:
    # Other tests may have evaluated it.
    assert {path.name for path in trained.iterdir()} - {"records"} == {
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
        "codes",
        "samples",
        ".lock",
        "checkpoints",
    }
    assert sorted(path.name for path in (trained / "samples").iterdir()) == [
        "step-000004.png",
        "step-000008.png",
    ]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]
    config = tomllib.loads((trained / "config.toml").read_text())
    assert config["encoder"]["attention"] == {"name": "pixel", "dim": 32, "norm": "logn"}
    assert resolve_run(config) == run(encoder={**TINY["encoder"], "attention": "pixel"})
    metrics = rows(trained)
    assert [row["step"] for row in metrics] == [2, 4, 6, 8]
    for row in metrics:
        assert {
            "step",
            "loss",
            "reconstruction",
            "quantization",
            "psnr",
            "levels",
            "images_per_second",
            "lr",
        } <= set(row)
        assert [set(level) for level in row["levels"]] == [
            {"codebook_size", "active", "usage", "perplexity", "unused"}
        ] * 2
    assert [("validation" in row) for row in metrics] == [False, True, False, True]
    assert set(metrics[-1]["validation"]) == {
        "images",
        "psnr",
        "ssim",
        "mae",
        "mae_over_variance",
        "bits_per_pixel",
        "levels",
    }


def test_samples_show_inputs_over_reconstructions(trained: Path) -> None:
    with Image.open(trained / "samples" / "step-000008.png") as picture:
        # 16 images in pairs of rows of 8, enlarged from 32 to 128 pixels, with a gap of 2.
        # Beside them are the labels, above them the caption.
        labels, caption = picture.width - (8 * 130 - 2), picture.height - (4 * 130 - 2)
        assert 50 < labels < 150
        assert 10 < caption < 30


# Few steps at a large learning rate, validated and saved once.
SHORT = {"steps": 60, "lr": 1e-2, "validate_every": 60, "checkpoint_every": 60}


def test_training_learns(tmp_path: Path) -> None:
    metrics = tiny_run(tmp_path / "run", SHORT).rows
    assert metrics[-1]["reconstruction"] < 0.7 * metrics[0]["reconstruction"]
    assert metrics[-1]["psnr"] > metrics[0]["psnr"] + 3


def test_the_same_seed_trains_the_same_model(trained: Path, tmp_path: Path) -> None:
    attention = {"encoder": {"attention": "pixel"}}
    tiny_run(tmp_path / "again", attention)
    tiny_run(tmp_path / "other", attention, {"seed": 1})
    assert same(weights(tmp_path / "again"), weights(trained))
    assert comparable(tmp_path / "again") == comparable(trained)
    assert not same(weights(tmp_path / "other"), weights(trained))


def test_workers_change_nothing(trained: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", {"encoder": {"attention": "pixel"}, "workers": 2})
    assert same(weights(tmp_path / "run"), weights(trained))


def test_a_directory_with_a_run_is_refused(trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="holds a run already: add --resume"):
        tiny_run(trained)
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_zero_steps_write_the_untrained_model(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", {"steps": 0})
    assert genkit.load(tmp_path / "run").codebook_sizes == [16, 16]


def test_a_nan_loss_stops_the_run(tmp_path: Path) -> None:
    wild = {"lr": 1e30, "clip": 0, "warmup": 0}
    with pytest.raises(TrainingError, match=r"10 steps in a row were .*: loss, reconstruction"):
        tiny_run(tmp_path / "run", {**wild, "steps": 30})
    # Every step from the second on failed, and no NaN or infinity was saved.
    assert [path.name for path in (tmp_path / "run" / "failure").iterdir()] == ["step-00000010"]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(TrainingError, match="weights became infinite or NaN, first"):
        tiny_run(
            tmp_path / "other",
            wild,
            {"optimizer": {"name": "adamw", "weight_decay": 1e30}, "steps": 1},
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 36}, "must be a multiple of the coarsest level's stride, 8"),
        ({"tracker": "aim"}, "needs the package aim"),
        (
            {"mixed_precision": "fp16", "r1_weight": 1.0, "discriminator": "patchgan"},
            "fp16 loses gradients",
        ),
        ({"quantizer": {"name": "fsq", "bins": 900}}, "too many codes"),
        ({"quantizer": {"name": "fsq", "bins": 100}}, "too large: at most"),
        pytest.param(
            {"mixed_precision": "fp16"},
            "needs a GPU",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        tiny_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_quantizers_see_float32_in_a_bf16_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genkit_avqvae.vq import VectorQuantizer

    seen: list[Any] = []
    forward = VectorQuantizer.forward

    def watched(self: VectorQuantizer, latents: torch.Tensor) -> Quantized:
        out = forward(self, latents)
        seen.append(
            (latents.dtype, out.latents.dtype, out.loss.dtype, torch.is_autocast_enabled("cpu"))
        )
        return out

    monkeypatch.setattr(VectorQuantizer, "forward", watched)
    convolutions = []
    conv = torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d,
        "forward",
        lambda self, x: convolutions.append(conv(self, x).dtype) or conv(self, x),
    )
    tiny_run(tmp_path / "run", {"steps": 1, "mixed_precision": "bf16", "checkpoint_every": 100})
    assert set(seen) == {(torch.float32, torch.float32, torch.float32, False)}
    assert torch.bfloat16 in convolutions


def test_the_average_of_the_weights_is_saved(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", {"ema": 0.999, "checkpoint_every": 1, "keep": 99})
    _, state = load_state(tmp_path / "run" / "checkpoints")
    saved = weights(tmp_path / "run")["encoder.base.2.weight"]
    assert torch.equal(saved, state["modules"]["average"]["module.encoder.base.2.weight"])
    assert not torch.equal(saved, state["modules"]["tokenizer"]["encoder.base.2.weight"])


def test_the_average_soon_forgets_the_initial_weights() -> None:
    """The decay is (1 + n) / (10 + n) until it reaches the configured one; integers are copied."""
    module = torch.nn.BatchNorm1d(1)
    average = EMA(module, 0.25, "cpu")
    expected = None
    for n, value in enumerate([4.0, 8.0, 2.0, 6.0, 1.0]):
        with torch.no_grad():
            module.weight.fill_(value)
        module.num_batches_tracked.fill_(n)
        average.update()
        weight = 1 - min(0.25, (1 + n) / (10 + n))
        expected = value if expected is None else expected + weight * (value - expected)
        assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.num_batches_tracked.item() == 4
    # A buffer that is replaced by a new tensor is followed too.
    module.running_mean = torch.full((1,), 8.0)
    average.update()
    assert average.module.running_mean.item() == pytest.approx(0.75 * 8)


def test_codes_learned_by_gradient_are_revived_in_training(tmp_path: Path) -> None:
    quantizer = {"update": "gradient", "distance": "cosine", "codebook_size": 64, "revive": 1.0}
    metrics = tiny_run(tmp_path / "run", {"steps": 30, "quantizer": quantizer}).rows
    assert metrics[-1]["step"] == 30


def test_broken_weights_do_not_replace_a_good_model(tmp_path: Path) -> None:
    """A NaN loss is noticed before the next checkpoint, not only at the next row of metrics."""
    settings = {"lr": 1e30, "clip": 0, "warmup": 0, "log_every": 1000, "checkpoint_every": 1}
    with pytest.raises(TrainingError, match="became infinite"):
        tiny_run(tmp_path / "run", settings, {"validate_every": 1000, "steps": 30})
    saved = weights(tmp_path / "run")
    assert all(value.isfinite().all() for name, value in saved.items() if "num_" not in name)


def test_accumulated_batches_equal_one_larger_batch(tmp_path: Path) -> None:
    """In the first step two halves give the whole batch's mean loss, apart from batch norm."""
    whole, halves = (
        tiny_run(tmp_path / str(n), {"steps": 1, "batch_size": 8 // n, "accumulate": n}).rows
        for n in (1, 2)
    )
    assert math.isclose(whole[0]["reconstruction"], halves[0]["reconstruction"], rel_tol=0.02)


def test_the_device_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine that seems to have a GPU, `--device cpu` still trains on the CPU."""
    with pytest.raises(OptionError, match=r"--device cuda:0: this machine has only cpu"):
        tiny_run(tmp_path / "refused", {"device": "cuda:0"})
    monkeypatch.setattr("genkit.training.processes.check_launcher", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    join(run(device="cpu"))
    assert make_accelerator(run(device="cpu"), tmp_path).device.type == "cpu"
    join(run(device="cpu:0"))
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="each process needs its own: leave the number out"):
        join(run(device="cuda:1"))


def test_the_learning_rate_rises_and_falls() -> None:
    at = learning_rate(run(steps=110, warmup=10, schedule={"name": "cosine", "final_lr": 0.1}), 1.0)
    assert [at(step) for step in (0, 9, 60, 110)] == pytest.approx([0.1, 1.0, 0.55, 0.1])
    constant = run(steps=110, warmup=10, lr=1.0, schedule="constant")
    assert learning_rate(constant, 1.0)(100) == 1.0


def test_draws_are_shared_shuffled_and_can_start_anywhere() -> None:
    r = run(steps=30, batch_size=4)
    one = [draw for batch in DrawSampler(r, 100, 0, 1, 0) for draw in batch]
    assert sorted(index for index, _ in one[:100]) == list(range(100))
    assert [index for index, _ in one[:20]] != [index for index, _ in one[100:120]]
    assert len({seed for _, seed in one}) == 120
    # A start at step 10 continues the same order.
    assert [draw for batch in DrawSampler(r, 100, 0, 1, 10) for draw in batch] == one[40:]
    # Two processes with half the batch each draw the same images in total.
    half = run(steps=30, batch_size=2)
    first, second = (list(DrawSampler(half, 100, process, 2, 0)) for process in range(2))
    assert [
        draw for pair in zip(first, second, strict=True) for batch in pair for draw in batch
    ] == one


def test_training_skips_damaged_files_and_names_them(photographs: Path, tmp_path: Path) -> None:
    victims = sorted(photographs.rglob("*.png"))[:3]
    victims[0].write_bytes(b"nothing")
    for victim in victims[1:]:
        victim.write_bytes(victim.read_bytes()[:-800])
    reporter = tiny_run(tmp_path / "run", {"data": str(photographs), "workers": 1})
    assert reporter.done
    named = (tmp_path / "run" / "unreadable.txt").read_text()
    assert all(str(victim.relative_to(photographs)) in named for victim in victims)
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["data"]["location"] == str(
        photographs
    )


def cut_short(files: Iterable[Path]) -> None:
    """The header still looks like an image."""
    for file in files:
        file.write_bytes(file.read_bytes()[:-800])


def test_unreadable_held_out_images_are_an_error_before_training(
    photographs: Path, tmp_path: Path
) -> None:
    split = Folder(FolderOptions(location=str(photographs)), (32, 32), 0).split("heldout")
    names = [split.name(index) for index in range(len(split))]
    cut_short(photographs / name for name in names)
    with pytest.raises(
        DataError, match=r"none of the held-out images can be read, first .*\.png: "
    ):
        tiny_run(tmp_path / "run", {"data": str(photographs)})
    assert not (tmp_path / "run").exists()


def test_broken_held_out_images_are_named_before_training(
    photographs: Path, tmp_path: Path
) -> None:
    """This covers all images that validation uses, not only those in the sample grids."""
    data = {"name": str(photographs), "crops": 4, "heldout": 0.9}
    split = Folder(FolderOptions(location=str(photographs), heldout=0.9), (32, 32), 0).split(
        "heldout"
    )
    names = [split.name(index) for index in range(len(split))]
    cut_short([photographs / names[1]])
    reporter = tiny_run(tmp_path / "run", {"data": data, "steps": 0, "validation_images": 8})
    assert list(reporter.facts["unreadable"]) == [f"{names[1]}#{crop}" for crop in range(4)]


def test_computed_images_are_not_checked_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("it takes long and cannot fail")

    monkeypatch.setattr("genkit.training.tokenizer.check_heldout", refuse)
    tiny_run(tmp_path / "run", {"steps": 0})


def test_held_out_images_that_break_later_lose_no_step(photographs: Path, tmp_path: Path) -> None:
    class Break(Silent):
        def advance(self, step: int) -> None:
            if step == 1:
                cut_short(photographs.rglob("*.png"))

    data = {"name": str(photographs), "cache": 0}
    settings = {"data": data, "workers": 0, "batch_size": 1, "checkpoint_every": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conftest.Silent", Break)
        patch.setattr("genkit.training.tokenizer.loader", endless)
        with pytest.raises(DataError, match="none of the images can be read, first "):
            tiny_run(tmp_path / "run", settings)
    assert load_state(tmp_path / "run" / "checkpoints")[0] == 4


def endless(run: TokenizerRun, *args: Any) -> Iterator[Any]:
    """Training images that never fail."""
    while True:
        yield torch.zeros(run.batch_size, *run.size, 3, dtype=torch.uint8), {}


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    """One name per line, also from a plugin's data set."""
    directory = RunDirectory(tmp_path)
    directory.name_unreadable({"a\nb.png": "it is cut\r short", "\x1b[31m\u202e.png": "no"})
    named = (tmp_path / "unreadable.txt").read_text(encoding="utf-8")
    assert named == "\\x1b[31m\\u202e.png: no\na\\nb.png: it is cut\\r short\n"
