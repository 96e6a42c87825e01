"""The contract of data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from genkit.checks import want
from genkit.testing.tools import call, construct, has, part

SIGNATURE = "Dataset(options, split, resolution, seed)"


def check_dataset(name: str, *, resolution: int = 32, **options: Any) -> None:
    """Check the data set `name`: shapes, determinism, names, and one fingerprint for all splits."""
    __tracebackhide__ = True
    chosen = part("dataset", name, options)
    splits = ("train", "heldout", "all")
    sets = {split: construct(chosen, SIGNATURE, split, resolution, 0) for split in splits}
    for split, dataset in sets.items():
        length = call(f"len() of the split {split}", len, dataset)
        want(length > 0, f"the split {split} must hold an image")
        indices = list(range(min(3, length)))
        images = _images(dataset, resolution, indices)
        want(
            _equal(_images(dataset, resolution, indices), images),
            "the same indices must give the same images: without seeds nothing may be random",
        )
        want(
            _equal(_images(dataset, resolution, indices[::-1]), images[::-1]),
            "images must come in the order of the indices",
        )
        seeds = [7] * len(indices)
        want(
            _equal(*(_images(dataset, resolution, indices, seeds) for _ in range(2))),
            "the same seeds must give the same images: what a seed varies may depend on it alone",
        )
        for index in indices:
            found = call(f"name({index})", has(dataset, "name", "a method (index) → text"), index)
            want(isinstance(found, str), f"name must return text, not {type(found).__name__}")
        problems = has(dataset, "problems", "a dict of what could not be read, and why")
        want(isinstance(problems, dict), f"problems must be a dict, not {type(problems).__name__}")
        fingerprint = has(dataset, "fingerprint", "text that tells one set of images from another")
        want(
            isinstance(fingerprint, str) and fingerprint,
            f"fingerprint must be text that tells sets of images apart, not {fingerprint!r}",
        )
    again = construct(chosen, SIGNATURE, "train", resolution, 0)
    want(
        _equal(_images(again, resolution, [0]), _images(sets["train"], resolution, [0]))
        and again.fingerprint == sets["train"].fingerprint,
        "two instances with the same arguments must hold the same images in the same order",
    )
    first = {
        split: {dataset.images([i]).tobytes() for i in range(min(64, len(dataset)))}
        for split, dataset in sets.items()
    }
    want(not first["train"] & first["heldout"], "no held-out image may be a training image")
    want(
        len({dataset.fingerprint for dataset in sets.values()}) == 1,
        "the fingerprint must be the same for all splits",
    )


def _images(dataset: Any, resolution: int, *args: list[int]) -> Any:
    """The images of indices, or of indices and seeds."""
    __tracebackhide__ = True
    read = has(dataset, "images", "a method (indices, seeds=None) → uint8 [B, H, W, 3]")
    images = call(f"images({', '.join(map(str, args))})", read, *args)
    want(
        isinstance(images, np.ndarray),
        f"images must return a NumPy array uint8 [B, H, W, 3], not {type(images).__name__}",
    )
    want(images.dtype == "uint8", f"images must be uint8 from 0 to 255, not {images.dtype}")
    wanted = (len(args[0]), resolution, resolution, 3)
    want(
        images.shape == wanted,
        f"images must be [B, H, W, 3] = {list(wanted)}, not {list(images.shape)}",
    )
    want(
        all(stride >= 0 for stride in images.strides),
        "images must be an array that torch.from_numpy takes: after a flip, "
        "np.ascontiguousarray makes it one",
    )
    return images


def _equal(first: Any, second: Any) -> bool:
    return bool((first == second).all())
