"""`python -m benchmarks tiles`: what tiles change at their seams, and their memory and time.

Every shipped encoder and decoder is trained for a few steps and then applied to one picture, whole
and by tiles. The default model encodes and decodes a large one in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import genkit
from benchmarks.jobs import fill, table
from benchmarks.speed.page import about, machine
from genkit.images import Pixels, from_pixels, to_uint8
from genkit.reach import reach
from genkit.run.options import layered, resolve_run
from genkit.tiles import TILE, decode_tiles, encode_tiles
from genkit.tokenizer import Tokenizer
from genkit.training.meter import peak_memory

ROOT = Path(__file__).parent.parent
_GROUP, _BATCH = (
    {part: {"norm": norm} for part in ("encoder", "decoder")} for norm in ("group", "batch")
)
_NARROW = {"name": "vqgan", "width": [32, 64]}
MODELS: dict[str, dict[str, Any]] = {
    "`aren`, `mirror`": {},
    "`aren`, `mirror`, batch norm": _BATCH,
    "`aren`, `mirror`, group norm": _GROUP,
    "`aren` with pixel attention, `mirror`": {"encoder": {"attention": "pixel"}},
    "`timm` with resnet10t, `mirror`": {"encoder": {"name": "timm", "model": "resnet10t"}},
    "`timm` with convnextv2_atto, `mirror`": {"encoder": "timm"},
    "`vqgan`, `vqgan`": {"encoder": _NARROW, "decoder": _NARROW},
    "`aren`, `residual`": {"decoder": "residual"},
}


@click.command()
@click.option("--quick", is_flag=True, help="A model, a small picture; not a measurement.")
@click.option(
    "--out",
    default=ROOT / "docs",
    type=click.Path(path_type=Path),
    help="Folder of large-images.md.",
)
@click.option("--render", is_flag=True, help="Write the page from existing figures.")
def main(quick: bool, out: Path, render: bool) -> None:
    """Measure tiles, and fill in OUT/large-images.md."""
    file = out / "performance" / "tiles.json"
    if not render:
        figures = measure(quick)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, text in page(json.loads(file.read_text(encoding="utf-8"))).items():
        fill(out / "large-images.md", name, text)


def measure(quick: bool) -> dict[str, Any]:
    """The figures of seams and of a large picture."""
    steps, size, tile, large = (1, 256, 128, 256) if quick else (20, 512, 256, 4096)
    models = dict(list(MODELS.items())[3:4]) if quick else MODELS
    seams = {name: seam(model, steps, size, tile) for name, model in models.items()}
    return {
        "machine": machine(False, 1, os.getloadavg()[0]),
        "quick": quick,
        "steps": steps,
        "size": size,
        "tile": tile,
        "large": large,
        "seams": seams,
        "costs": [cost(each, large) for each in ((TILE,) if quick else (TILE, 0))],
    }


def seam(model: Mapping[str, Any], steps: int, size: int, tile: int) -> dict[str, Any]:
    """The reach of a model's encoder and decoder, and what tiles change."""
    settings = {"steps": steps, "resolution": 64, "batch_size": 8, "validation_images": 8}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = genkit.train({**settings, **model}, out=Path(folder) / "run").to("cpu").eval()
    pixels = picture(size)
    indices = tokenizer.encode(from_pixels(pixels))
    found = encode_tiles(tokenizer, pixels, tile, approximate=True)
    whole = to_uint8(tokenizer.decode(indices)).astype(int)
    error = abs(decode_tiles(tokenizer, indices, tile, approximate=True) - whole)
    return {
        "encode": reach(tokenizer, "encode").pixels,
        "decode": reach(tokenizer, "decode").pixels,
        "indices": [float((a != b).double().mean()) for a, b in zip(found, indices, strict=True)],
        "codes": [len(level.unique()) for level in indices],
        "largest": int(error.max()),
        "mean": float(error.mean()),
    }


def picture(size: int) -> Pixels:
    """Portraits beside and above each other, as one picture `[1, size, size, 3]`."""
    side = size // 2
    data = resolve_run(layered(None, {})).data.build((side, side), 0).split("train")
    four = data.images([0, 1, 2, 3])
    return np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])[None]


def cost(tile: int, size: int) -> dict[str, Any]:
    """CPU seconds and the largest memory of a process that takes a large picture."""
    command = [sys.executable, "-m", "benchmarks.tiles", str(tile), str(size)]
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _cost(tile: int, size: int) -> None:
    """The measurement itself, in a process of its own."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(resolve_run(layered(None, {})).tokenizer).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    begin = time.process_time()
    indices = encode_tiles(tokenizer, pixels, tile)
    between = time.process_time()
    decode_tiles(tokenizer, indices, tile)
    end = time.process_time()
    peak = (peak_memory(torch.device("cpu")) or 0) / 2**10
    seconds = {"encode": between - begin, "decode": end - between}
    print(json.dumps({"tile": tile, "gib": peak, **seconds}))


def page(figures: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page, by their marks."""

    def far(pixels: int | None) -> str:
        return "the whole image" if pixels is None else f"{pixels} px"

    seams = [
        [
            name,
            far(each["encode"]),
            " and ".join(f"{share:.2%}" for share in each["indices"]),
            far(each["decode"]),
            f"{each['largest']} ({each['mean']:.3f})",
        ]
        for name, each in figures["seams"].items()
    ]
    costs = [
        [
            f"tiles of {each['tile']:,}" if each["tile"] else "whole",
            f"{each['gib']:.2f} GiB",
            f"{each['encode']:.0f} s",
            f"{each['decode']:.0f} s",
        ]
        for each in figures["costs"]
    ]
    side = f"{figures['large']:,}"
    tables = {
        "seams": table(
            [
                "encoder, decoder",
                "encoder sees",
                "indices that differ, per level",
                "decoder sees",
                "largest (mean) difference of pixels",
            ],
            seams,
        )
        + f"\n\nA picture of {figures['size']:,} x {figures['size']:,} pixels by tiles of "
        f"{figures['tile']}, after {figures['steps']} steps of training. "
        f"{about(figures['machine'])}.",
        "costs": table(
            [f"{side} x {side} pixels", "largest memory", "CPU time to encode", "to decode"], costs
        )
        + "\n\nThe default model encodes noise and decodes the indices, as `genkit reconstruct` "
        "does, on one thread. The memory is the process's; PyTorch alone takes 0.5 GiB of it.",
    }
    return {name: tables[name] for name in tables if figures[name]}


if __name__ == "__main__":
    _cost(int(sys.argv[1]), int(sys.argv[2]))
