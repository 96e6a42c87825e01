"""Indices to images: pictures or arrays, written as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genkit.checkpoint.model import fingerprint
from genkit.devices import mixed, precision_text
from genkit.errors import GenkitError, OptionError
from genkit.files import expanded, replacing
from genkit.images import Pixels, save_png, to_uint8
from genkit.tokenizer import Tokenizer
from genkit.tokens.dataset import Tokens
from genkit.tokens.encode import SHARD_SIZE, Progress
from genkit.tokens.output import Output

FORMATS = ("png", "npy")


def safe_name(name: str, number: int) -> str:
    """A file name for image `number` made from `name`; it cannot point to another folder."""
    stem = re.sub(r"\.\w{1,5}$", "", name)
    return f"{number:05d}-{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[-80:]}"


def decode(
    tokenizer: Tokenizer,
    tokens: Tokens,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    format: str = "png",
    shard_size: int = SHARD_SIZE,
    mixed_precision: str = "no",
    progress: Progress = lambda done, total: None,
) -> int:
    """Decode tokens into a folder; returns the number of images.

    `format` `png` writes a picture per image, `npy` arrays uint8 `[N, H, W, channels]` of
    `shard_size` images. The same call resumes after a kill, and the processes of a launcher share
    the work. Raises `CheckpointError`, before anything is written, for damaged tokens and for those
    of another tokenizer.
    """
    if format not in FORMATS:
        raise OptionError(f"format can be {' or '.join(FORMATS)}, not {format!r}")
    output = Output(expanded(out), whole=False)
    output.check()
    tokens.check(tokenizer)
    if not len(tokens):
        raise GenkitError("the tokens hold no images to decode")
    if format == "npy" and tokens.ragged:
        raise OptionError("images of different sizes do not fit one array: use the format png")
    job = _Decoding(tokenizer, tokens, output, 1 if tokens.ragged else batch_size, mixed_precision)
    plan = {
        "model": fingerprint(tokenizer),
        "set of images": tokens.source,
        "number of images": len(tokens),
        "format": format,
        "precision": job.precision,
        **({"shard size": shard_size} if format == "npy" else {}),
    }
    with output.claimed(plan) as unfinished:
        if unfinished:
            write = job.arrays(shard_size) if format == "npy" else job.pictures()
            done = 0
            for count, total in write:
                done += count
                progress(done, total)
            if output.wait(job.complete):
                output.clear()
    return len(tokens)


class _Decoding:
    """The images of some tokens, and the files that they become."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: Tokens,
        output: Output,
        batch_size: int,
        mixed_precision: str,
    ) -> None:
        self.tokenizer, self.tokens, self.output = tokenizer, tokens, output
        self.batch_size, self.mixed_precision = batch_size, mixed_precision
        self.device = next(tokenizer.parameters()).device
        self.precision = precision_text(tokenizer, self.device, mixed_precision)
        self.complete: Callable[[], bool] = lambda: True

    def pictures(self) -> Iterator[tuple[int, int]]:
        """Write a PNG per image; yields how many images each step took, and of how many."""
        count, size = len(self.tokens), self.batch_size
        own = self.output.own(-(-count // size))
        total = sum(min(size, count - number * size) for number in own)
        self.complete = lambda: all(map(self._is_there, range(-(-count // size))))
        for number in own:
            paths = self._pictures_of(number)
            if not all(path.exists() for path in paths):
                start = number * size
                for path, picture in zip(paths, self._decoded(start, start + size), strict=True):
                    save_png(path, picture)
            yield len(paths), total

    def _is_there(self, number: int) -> bool:
        return all(path.exists() for path in self._pictures_of(number))

    def _pictures_of(self, number: int) -> list[Path]:
        """The files of a batch."""
        start = number * self.batch_size
        names = self.tokens.names[start : start + self.batch_size]
        return [
            self.output.folder / f"{safe_name(name, place)}.png"
            for place, name in enumerate(names, start)
        ]

    def arrays(self, shard_size: int) -> Iterator[tuple[int, int]]:
        """Write an array for every `shard_size` images; yields as `pictures` does."""
        starts = range(0, len(self.tokens), shard_size)
        paths = [self.output.folder / f"{number:05d}.npy" for number in range(len(starts))]
        sizes = [min(shard_size, len(self.tokens) - start) for start in starts]
        own = self.output.own(len(starts))
        total = sum(sizes[number] for number in own)
        self.complete = lambda: all(path.exists() for path in paths)
        for number in own:
            if paths[number].exists():
                yield sizes[number], total
                continue
            with replacing(paths[number]) as temporary:
                start, array = starts[number], None
                for at in range(0, sizes[number], self.batch_size):
                    stop = min(at + self.batch_size, sizes[number])
                    pixels = self._decoded(start + at, start + stop)
                    if array is None:
                        shape = sizes[number], *pixels.shape[1:]
                        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                    array[at:stop] = pixels
                    yield stop - at, total
                if array is not None:
                    array.flush()

    def _decoded(self, start: int, stop: int) -> Pixels:
        indices: list[Any] = [level.to(self.device) for level in self.tokens.batch(start, stop)]
        with mixed(self.device, self.mixed_precision):
            return to_uint8(self.tokenizer.decode(indices))
