"""Left-right consistency of reconstructed faces: eyes, brows and earrings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import genkit
from genkit.images import from_pixels
from genkit.run.options import layered, resolve_run
from genkit.size import Size

PARTS = ("iris", "brow", "earring")
_KINDS = ("symmetry", "colour")
_IMAGES, _BATCH = 512, 64


def symmetry(directory: Path) -> dict[str, Any]:
    """Per part and held-out face, the error of the left-right difference of its colour.

    A part's colour is the mean over its pixels, in 8-bit steps. Light makes the sides of the
    original differ too, so left - right is computed for picture and reconstruction; the error is
    the absolute change of this difference, averaged over channels. The error of the colour itself
    is averaged over both sides. Faces with less than two pixels of a part on a side are left out
    (NaN).
    """
    tokenizer = genkit.load(directory)
    size = Size.of(genkit.inspect(directory)["training"]["resolution"])
    assert size
    data = resolve_run(layered(None, {"data": {"name": "faces", "heldout": _IMAGES}})).data
    # The first images of the data set are its held-out faces.
    faces = data.build(size.pair, 0)
    errors: dict[str, list[Any]] = {f"{kind}_{part}": [] for kind in _KINDS for part in PARTS}
    for start in range(0, _IMAGES, _BATCH):
        indices = range(start, min(start + _BATCH, _IMAGES))
        pixels = faces.images(indices)
        with torch.no_grad():
            made = tokenizer(from_pixels(pixels)).images.add(1).mul(127.5)
        regions = faces.regions(indices)
        pictures = pixels.astype(np.float32), made.permute(0, 2, 3, 1).numpy()
        for part in PARTS:
            left, right = (
                [_colour(picture, regions[f"{side}_{part}"]) for picture in pictures]
                for side in ("left", "right")
            )
            change = (left[1] - right[1]) - (left[0] - right[0])
            errors[f"symmetry_{part}"].append(np.abs(change).mean(1))
            off = [np.abs(side[1] - side[0]).mean(1) for side in (left, right)]
            errors[f"colour_{part}"].append(np.mean(off, axis=0))
    faces_errors = {name: np.concatenate(parts) for name, parts in errors.items()}
    np.savez(directory / "symmetry.npz", **faces_errors)
    return {"symmetry": {name: float(np.nanmean(each)) for name, each in faces_errors.items()}}


def _colour(picture: Any, region: Any) -> Any:
    """The mean colour `[B, 3]` of pictures `[B, H, W, 3]` in a region `[B, H, W]`."""
    weight = region.sum((1, 2))
    sums = np.einsum("bhwc,bhw->bc", picture, region)
    return np.where(weight[:, None] >= 2, sums / np.maximum(weight, 1e-9)[:, None], np.nan)


def interval(runs: list[Path], others: list[Path], name: str) -> tuple[float, float, float]:
    """The mean of `name` over `runs` minus that over `others`, and its 95 % interval.

    The interval is a bootstrap (2,000 draws) over seeds and faces, with the same faces for both
    groups.
    """
    a, b = (
        np.stack([np.load(run / "symmetry.npz")[name] for run in each]) for each in (runs, others)
    )
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        faces = rng.integers(a.shape[1], size=a.shape[1])
        first, second = (each[rng.integers(len(each), size=len(each))] for each in (a, b))
        draws.append(np.nanmean(first[:, faces]) - np.nanmean(second[:, faces]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.nanmean(a) - np.nanmean(b)), float(low), float(high)
