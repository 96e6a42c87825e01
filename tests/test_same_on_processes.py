"""Two processes with half the batch each train what one process trains.

Training amplifies float32 rounding: a latent between two codes takes one or the other, and Muon and
Adam turn small gradients into large steps. So the arithmetic is compared in float64, where
everything agrees to far better than 1e-5, and in float32 only over the first steps.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, flags, rows, weights
from safetensors.torch import load_file

from genkit.data.order import DrawSampler
from genkit.run.options import layered, resolve_run

# `genkit train` with optional float64 that writes a hash of every codebook after every step.
DRIVER = """
import hashlib, os, sys, torch
from genkit_avqvae.vq import VectorQuantizer
from genkit_cli.main import main

torch.set_num_threads(1)
if os.environ["DOUBLE"] == "1":
    torch.set_default_dtype(torch.float64)
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
plain, log = VectorQuantizer.forward, open(f"codes-{os.environ.get('RANK', 0)}", "w")

def forward(self, latents):
    out = plain(self, latents)
    if self.training:
        state = [self.codebook, self.counts, self.idle]
        content = b"".join(each.detach().numpy().tobytes() for each in state)
        print(self.level.index, hashlib.sha256(content).hexdigest(), file=log, flush=True)
    return out

VectorQuantizer.forward = forward
sys.exit(main())
"""
RUN: dict[str, Any] = {
    **TINY,
    "batch_size": 8,
    "steps": 50,
    "warmup": 10,
    "log_every": 1,
    "validate_every": 50,
    "checkpoint_every": 50,
    "validation_images": 16,
    "quantizer": {"codebook_size": 64, "revive": 2.0},
}
PATCHGAN: dict[str, Any] = {
    "discriminator": "patchgan",
    "discriminator.norm": "batch",
    "discriminator.width": [8, 8],
    "discriminator.strides": [2, 2, 1],
    "discriminator_head_start": 5,
    "discriminator_ramp": 10,
    "adversarial_adaptive": True,
    "lecam_weight": 0.01,
    "r1_weight": 1.0,
    "r1_every": 4,
}
STYLEGAN: dict[str, Any] = {
    "discriminator": "stylegan",
    "discriminator.width": [8, 8, 8],
    "discriminator_head_start": 5,
    "discriminator_ramp": 10,
}
# Batch norms with built-in activations, and the entropy term. Norms over eight values each
# triple rounding errors per step: 1e-16 becomes 1e-8 after 15 steps.
TIMM: dict[str, Any] = {
    "steps": 15,
    "validate_every": 15,
    "checkpoint_every": 15,
    "encoder": "timm",
    "encoder.model": "test_resnet",
    "encoder.latent_channels": 8,
    "decoder": {"width": [8, 8]},
    "quantizer": {"codebook_size": 64, "entropy_weight": 0.1},
}
RESIDUAL: dict[str, Any] = {
    "quantizer": "residual-vq",
    "quantizer.codebook_size": 64,
    "quantizer.codebooks": 2,
}


def train(folder: Path, processes: int, settings: Mapping[str, Any], double: bool = False) -> Path:
    """Train in several processes with `batch_size` images in total; returns the run directory."""
    folder.mkdir()
    (folder / "driver.py").write_text(DRIVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    parts = {**settings, "batch_size": settings["batch_size"] // processes}
    children = [
        subprocess.Popen(
            [sys.executable, "driver.py", "train", *flags(parts), "--out", "run"],
            cwd=folder,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "MASTER_ADDR": "127.0.0.1",
                "DOUBLE": str(int(double)),
                **{k: str(v) for k, v in together.items() if processes > 1},
                **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for child in children:
            said, _ = child.communicate(timeout=150)
            assert child.returncode == 0, said
    finally:
        for child in children:
            child.kill()
    return folder / "run"


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if not a.is_floating_point():
        return float(not torch.equal(a, b))
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


def losses(row: Mapping[str, Any]) -> dict[str, float]:
    measured = ("images_per_second", "waiting", "memory_mb")
    return {k: v for k, v in row.items() if isinstance(v, float) and k not in measured}


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    (step,) = (out / "checkpoints").glob("step-*")
    tensors = load_file(step / "tensors.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("/modules/")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, PATCHGAN, STYLEGAN, TIMM, RESIDUAL],
    ids=["vq", "patchgan", "stylegan", "timm", "residual-vq"],
)
def test_two_half_batches_train_like_the_whole(tmp_path: Path, changes: dict[str, Any]) -> None:
    """In float64: losses, codes in use, counts, codebooks, weights, discriminator."""
    settings = {**RUN, **changes}
    whole, halves = (train(tmp_path / str(n), n, settings, double=True) for n in (1, 2))
    assert len(rows(whole)) == len(rows(halves)) == settings["steps"]
    for one, two in zip(rows(whole), rows(halves), strict=True):
        assert losses(two) == pytest.approx(losses(one), rel=1e-5, abs=1e-8), one["step"]
        assert two["levels"] == one["levels"], one["step"]
    ours, theirs = checkpoint(whole), checkpoint(halves)
    assert ours.keys() == theirs.keys()
    assert not {k: d for k in ours if (d := distance(ours[k], theirs[k])) > 1e-5}
    assert max(distance(weights(whole)[k], v) for k, v in weights(halves).items()) < 1e-5


@pytest.mark.slow
def test_in_float32_they_differ_only_by_rounding(tmp_path: Path) -> None:
    """The losses agree to 1e-5 over the first 5 steps and to 1e-3 over 50."""
    whole, halves = (train(tmp_path / str(n), n, RUN) for n in (1, 2))
    for one, two in zip(rows(whole), rows(halves), strict=True):
        close = 1e-5 if one["step"] <= 5 else 1e-3
        names = ("loss", "reconstruction", "psnr")
        assert [two[k] for k in names] == pytest.approx([one[k] for k in names], rel=close)
    assert rows(halves)[4]["levels"] == rows(whole)[4]["levels"]


@pytest.mark.slow
def test_codebooks_are_bit_identical_on_all_processes(tmp_path: Path) -> None:
    """At every step, with k-means start and revival. 17 held-out images cause no deadlock."""
    settings = {
        **RUN,
        "steps": 12,
        "log_every": 4,
        "validate_every": 4,
        "checkpoint_every": 12,
        "validation_images": 17,
        "data": {"heldout": 17},
        "quantizer": {"codebook_size": 64, "revive": 0.5, "entropy_weight": 0.1},
    }
    out = train(tmp_path / "run", 2, settings)
    first, second = ((out.parent / f"codes-{rank}").read_text() for rank in range(2))
    assert first.count("\n") == 12 * len(rows(out)[-1]["levels"])
    assert len(set(first.splitlines())) == first.count("\n")
    assert first == second
    assert rows(out)[-1]["validation"]["images"] == 17


@pytest.mark.slow
def test_one_held_out_image_for_two_processes_does_not_hang(tmp_path: Path) -> None:
    settings = {**RUN, "steps": 4, "validate_every": 2, "data": {"heldout": 1}}
    changes = {**PATCHGAN, "quantizer": {"codebook_size": 16, "entropy_weight": 0.1}}
    out = train(tmp_path / "run", 2, {**settings, **changes})
    assert [row["validation"]["images"] for row in rows(out) if "validation" in row] == [1, 1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_two_processes_see_the_same_images(accumulate: int) -> None:
    """Over two epochs, all processes' draws in a pass form the next stretch of one order."""
    images, size = 36, 3
    run = resolve_run(layered(None, {**TINY, "batch_size": size, "accumulate": accumulate}))
    for processes in (1, 2, 4):
        every = [list(DrawSampler(run, images, p, processes, 0)) for p in range(processes)]
        passes = [[draw for part in each for draw in part] for each in zip(*every, strict=True)]
        drawn = [image for each in passes for image, _ in each]
        seeds = [seed for each in passes for _, seed in each]
        assert all(b == a + 1 for a, b in pairwise(seeds))
        for epoch in range(0, len(drawn) - images + 1, images):
            assert sorted(drawn[epoch : epoch + images]) == list(range(images))
        whole = resolve_run(
            layered(None, {**TINY, "batch_size": size * processes, "accumulate": accumulate})
        )
        assert drawn == [image for part in DrawSampler(whole, images, 0, 1, 0) for image, _ in part]
