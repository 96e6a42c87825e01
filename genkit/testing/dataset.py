"""The contract of data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from genkit.checks import want
from genkit.interfaces import View
from genkit.testing.tools import call, construct, has, part

# How many names of a split are compared.
_NAMES = 100
SIGNATURE = "Dataset(options, size, seed)"


def check_dataset(name: str, *, height: int = 32, width: int = 48, **options: Any) -> None:
    """Check the data set `name`: its splits' images, names, labels and captions."""
    __tracebackhide__ = True
    size = height, width
    chosen = part("dataset", name, options)
    dataset, again = (construct(chosen, SIGNATURE, size, 0) for _ in range(2))
    _check_facts("the data set", dataset)
    take = has(dataset, "split", "a method (name) → the split train, heldout or all")
    splits = {name: call(f"split({name!r})", take, name) for name in ("train", "heldout", "all")}
    for name, split in splits.items():
        _check_split(name, split, size)
        for fact in ("fingerprint", "channels", "classes"):
            want(
                getattr(split, fact) == getattr(dataset, fact),
                f"the {fact} must be the same for all splits and the data set",
            )
    first = again.split("train")
    want(
        _equal(_images(first, size, [0]), _images(splits["train"], size, [0]))
        and again.fingerprint == dataset.fingerprint,
        "two instances with the same arguments must hold the same images in the same order",
    )
    seen = {
        name: {split.images([i]).tobytes() for i in range(min(64, len(split)))}
        for name, split in splits.items()
    }
    want(not seen["train"] & seen["heldout"], "no held-out image may be a training image")


def _check_facts(what: str, held: Any) -> None:
    """Check the attributes that a data set and its splits have in common."""
    __tracebackhide__ = True
    fingerprint = has(held, "fingerprint", "text that differs between sets of images")
    want(
        isinstance(fingerprint, str) and fingerprint,
        f"fingerprint must be text that differs between sets of images, not {fingerprint!r}",
    )
    channels = has(held, "channels", "the number of an image's channels")
    want(
        type(channels) is int and channels > 0,
        f"channels of {what} must be an integer above 0, not {channels!r}",
    )
    classes = has(held, "classes", "a list of the names of labels, empty without labels")
    want(
        isinstance(classes, list) and all(isinstance(each, str) for each in classes),
        f"classes of {what} must be a list of text, empty without labels, not {classes!r}",
    )


def _check_split(name: str, split: Any, size: tuple[int, int]) -> None:
    __tracebackhide__ = True
    _check_facts(f"the split {name}", split)
    length = call(f"len() of the split {name}", len, split)
    want(length > 0, f"the split {name} must hold at least one image")
    indices = list(range(min(3, length)))
    images = _images(split, size, indices)
    want(
        _equal(_images(split, size, indices), images),
        "the same indices must give the same images: without seeds nothing may be random",
    )
    want(
        _equal(_images(split, size, indices[::-1]), images[::-1]),
        "images must come in the order of the indices",
    )
    seeds = [7] * len(indices)
    want(
        _equal(*(_images(split, size, indices, seeds) for _ in range(2))),
        "the same seeds must give the same images: augmentation may depend on the seed alone",
    )
    problems = has(
        split, "problems", "a dict of the images that could not be read, with the reasons"
    )
    want(isinstance(problems, dict), f"problems must be a dict, not {type(problems).__name__}")
    _check_names(split)
    for index in indices:
        _check_texts(split, index)
        if hasattr(split, "view"):
            _check_view(split, index)


def _check_names(split: Any) -> None:
    """Check that the first images have names of their own."""
    __tracebackhide__ = True
    name, seen = has(split, "name", "a method (index) → text"), set()
    for index in range(min(_NAMES, len(split))):
        found = call(f"name({index})", name, index)
        want(
            found not in seen,
            f"every image needs a name of its own, but two are called {found!r}: token files and "
            "lists of unreadable files name images",
        )
        seen.add(found)


def _check_texts(split: Any, index: int) -> None:
    """Check an image's name, label and caption."""
    __tracebackhide__ = True
    found = call(f"name({index})", has(split, "name", "a method (index) → text"), index)
    want(isinstance(found, str), f"name must return text, not {type(found).__name__}")
    label = call(f"label({index})", has(split, "label", "a method (index) → int or None"), index)
    count = len(split.classes)
    want(
        label is None or (type(label) is int and 0 <= label < count),
        f"label must return None or an index below the number of classes, {count}, not {label!r}",
    )
    find = has(split, "caption", "a method (index) → text or None")
    caption = call(f"caption({index})", find, index)
    want(
        caption is None or isinstance(caption, str),
        f"caption must return text or None, not {type(caption).__name__}",
    )


def _check_view(split: Any, index: int) -> None:
    """Check the part of its original that an image shows, with and without a seed."""
    __tracebackhide__ = True
    for args in ((index,), (index, 7)):
        said = f"view({', '.join(map(str, args))})"
        view = call(said, split.view, *args)
        if view is None:
            continue
        shape = call(said, lambda view: [len(part) for part in View._make(view)[:2]], view)
        want(shape == [2, 4], f"{said} must return a genkit.interfaces.View, not {view!r}")
        (height, width), (top, left, rows, columns), mirrored = call(said, View._make, view)
        want(
            0 <= top < top + rows <= height and 0 <= left < left + columns <= width,
            f"{said} must return a crop inside its original, not {view}",
        )
        want(isinstance(mirrored, bool), f"mirrored of {said} must be a bool, not {mirrored!r}")
        want(len(args) > 1 or not mirrored, f"{said} has no seed, so it must not be mirrored")


def _images(split: Any, size: tuple[int, int], *args: list[int]) -> Any:
    """The images for indices, or for indices and seeds, after checks."""
    __tracebackhide__ = True
    read = has(split, "images", "a method (indices, seeds=None) → uint8 [B, H, W, channels]")
    images = call(f"images({', '.join(map(str, args))})", read, *args)
    form = "[B, H, W, channels]"
    want(
        isinstance(images, np.ndarray),
        f"images must return a NumPy array uint8 {form}, not {type(images).__name__}",
    )
    want(images.dtype == "uint8", f"images must be uint8 from 0 to 255, not {images.dtype}")
    wanted = (len(args[0]), *size, split.channels)
    want(
        images.shape == wanted,
        f"images must be {form} = {list(wanted)}, not {list(images.shape)}",
    )
    want(
        all(stride >= 0 for stride in images.strides),
        "images must be an array that torch.from_numpy accepts: call np.ascontiguousarray "
        "after a flip",
    )
    return images


def _equal(first: Any, second: Any) -> bool:
    return bool((first == second).all())
