"""A small collection of photographs, and what tests of its encoding share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genkit.evaluation.images import all_images
from genkit.interfaces import Split

BATCHES: dict[str, Any] = {"batch_size": 4, "shard_size": 8}
FLAGS = ["--batch-size", "4", "--shard-size", "8"]


def photos(folder: Path, count: int = 30, shapes: bool = False) -> Path:
    """Small photographs of two classes, one of them damaged and one with a caption.

    With `shapes`, they are of several sizes.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        base = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        size = (44 + number % 3 * 17 * shapes, 36 + number % 5 * 9 * shapes)
        picture = Image.fromarray(base).resize(size, Image.Resampling.BICUBIC)
        picture.save(file, compress_level=1)
    (folder / "a" / "00000.txt").write_text("the first")
    damaged = folder / "b" / "00003.png"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    return folder


def split_of(folder: Path, options: str = "") -> Split:
    return all_images(f"{folder}{options}", (32, 32))


def contents(out: Path) -> dict[str, bytes]:
    files = [out] if out.is_file() else [file for file in sorted(out.rglob("*")) if file.is_file()]
    return {file.name: file.read_bytes() for file in files}


class Stop(Exception):
    pass


def stop_at(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise Stop

    return progress
