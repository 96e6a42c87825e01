"""Reading from data sets, skipping images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from genkit.distributed import processes
from genkit.errors import DataError, UnreadableImage
from genkit.images import Pixels, from_pixels, is_deep
from genkit.interfaces import Split


def read(
    dataset: Split,
    indices: Sequence[int],
    seeds: Sequence[int] | None = None,
    problems: dict[str, str] | None = None,
) -> tuple[list[int], Pixels]:
    """The readable images `[B, H, W, channels]`, and their places among `indices`.

    Without seeds there is no augmentation. The other images are added to `problems`, by default
    the data set's.
    """
    problems = dataset.problems if problems is None else problems
    try:
        return list(range(len(indices))), dataset.images(indices, seeds)
    except UnreadableImage:
        kept, rows = [], []
        for place, index in enumerate(indices):
            try:
                rows.append(dataset.images([index], None if seeds is None else [seeds[place]]))
                kept.append(place)
            except UnreadableImage as error:
                problems[error.name] = error.reason
        dtype = np.uint16 if is_deep(dataset) else np.uint8
        empty: Pixels = np.empty((0, 1, 1, dataset.channels), dtype)
        return kept, np.concatenate(rows) if rows else empty


def read_varied(dataset: Split, indices: Sequence[int], seeds: Sequence[int]) -> Pixels:
    """Training images `[B, H, W, channels]`; the next readable image replaces an unreadable one."""
    try:
        return dataset.images(indices, seeds)
    except UnreadableImage:
        return np.concatenate(
            [
                _next_readable(dataset, index, seed)
                for index, seed in zip(indices, seeds, strict=True)
            ]
        )


def batches(
    dataset: Split,
    images: int,
    batch_size: int,
    device: torch.device,
    process: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and images in [-1, 1], without augmentation, of a data set's first `images` images.

    Processes share the batches, which hold the same images for any number of processes. Once a
    batch is done, `progress` is called with how many images of how many are.
    """
    numbers = range(min(images, len(dataset)))
    for start in range(process * batch_size, len(numbers), processes() * batch_size):
        chosen = numbers[start : start + batch_size]
        kept, pixels = read(dataset, chosen)
        if kept:
            yield (
                [chosen[place] for place in kept],
                from_pixels(torch.from_numpy(pixels).to(device)),
            )
        progress(chosen[-1] + 1, len(numbers))


def _next_readable(dataset: Split, index: int, seed: int) -> Pixels:
    for attempt in range(len(dataset)):
        try:
            return dataset.images([(index + attempt) % len(dataset)], [seed])
        except UnreadableImage as error:
            dataset.problems[error.name] = error.reason
    raise none_readable(dataset.problems, "training images")


def none_readable(problems: Mapping[str, str], what: str) -> DataError:
    """The error for a data set without readable images, with the first known reason."""
    first = next(iter(problems.items()), None)
    return DataError(
        f"none of the {what} can be read" + (f", first {first[0]}: {first[1]}" if first else "")
    )
