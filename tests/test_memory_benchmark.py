"""The account of a step's memory counts what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import genkit_command, rows
from torch import Tensor, nn

from benchmarks.speed import memory
from benchmarks.speed.memory import Live, account
from benchmarks.speed.timing import spread

SMALL = {
    "encoder": {"width": [32], "blocks": 3, "strides": [4], "attention_strides": [0]},
    "decoder": {"width": [32], "blocks": 3, "attention_strides": [0]},
    "resolution": 32,
    "batch_size": 8,
}


def test_live_tensors_are_counted_until_they_go() -> None:
    with Live() as live:
        kept = torch.zeros(1000)
        view = kept.view(10, 100)[2:]
        assert live.now == 4000
        _ = torch.ones(500) + 1
        del _
        assert (live.now, live.peak) == (4000, 8000)
        del kept
        assert live.now == 4000
        del view
    assert live.now == 0


def test_what_autograd_keeps_is_counted_as_its_hooks_count_it() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(100, 8, requires_grad=True)
    with Live() as live, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = net(x)
    given = {each.untyped_storage().data_ptr() for each in (x, *net.parameters())}
    made = sum(size for place, size in saved.items() if place not in given)
    assert live.now == made + out.untyped_storage().nbytes() == 100 * (16 + 4) * 4


def test_the_account_halves_with_recomputed_blocks() -> None:
    plain, again = (account(SMALL, False, recomputed, vgg=False) for recomputed in (False, True))
    assert again["kept"] < 0.4 * plain["kept"]
    assert again["step"] < 0.6 * plain["step"]
    parts = ("weights", "moments", "average", "discriminator", "perceptual", "step")
    assert plain["total"] == sum(plain[part] for part in parts)
    assert plain["moments"] == 2 * plain["weights"]


@pytest.mark.slow
def test_the_preset_vqgan_fits_a_card_of_24_gb() -> None:
    """In float32 with recomputed blocks, or in bfloat16, with LPIPS's network beside it."""
    room = (memory.CARD - memory.TAKEN) * 2**30
    assert account({}, False, False, vgg=True)["total"] > room
    assert account({}, False, True, vgg=True)["total"] < room / 2
    assert account({}, True, False, vgg=True)["total"] < room


@pytest.mark.slow
def test_a_process_needs_less_memory(tmp_path: Path) -> None:
    found = []
    for name, more in (("plain", []), ("again", ["--recompute"])):
        out = tmp_path / name
        sizes: list[Any] = ["--encoder.width", "32", "--decoder.width", "32", "--resolution", 128]
        sizes += ["--batch-size", 4, "--steps", 1, "--validation-images", 1, "--data.size", 20]
        done = genkit_command(
            *("train", "--preset", "vqgan", "--out", out, "--discriminator", "none"), *sizes, *more
        )
        assert done.returncode == 0, done.stderr
        found.append(rows(out)[-1]["memory_mb"])
    # Both need the same for Python, its libraries and weights; the blocks' part is 100 MB.
    assert found[1] < found[0] - 50


def test_the_page_says_which_way_fits(tmp_path: Path) -> None:
    parts = dict.fromkeys(memory._PARTS, 2**30)
    accounts = [
        {"bf16": False, "again": False, **parts, "total": 30 * 2**30},
        {"bf16": True, "again": True, **parts, "total": 5 * 2**30},
    ]
    one = {**spread([1.0, 1.0]), "median": 1.25}
    steps = {"a model": {"ratios": {"as it is": one}, "bytes": {"as it is": 3 * 2**20}}}
    text = memory.page({"accounts": accounts, "steps": steps}, tmp_path)
    assert "| GiB | float32 | bf16, `--recompute` |" in text
    assert "| **in all** | 30.00 | 5.00 |" in text
    assert "| fits | no | yes |" in text
    assert "| a model | 1.25 (1.00–1.00), 3 MB |" in text
