"""Indices to images: pictures or arrays, written as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from genkit.checkpoint.model import fingerprint
from genkit.devices import check_precision, mixed, precision_text
from genkit.errors import CheckpointError, GenkitError, OptionError
from genkit.files import expanded, replacing
from genkit.images import Pixels, save_png, to_uint8
from genkit.tokenizer import Tokenizer
from genkit.tokens.dataset import Tokens
from genkit.tokens.encode import SHARD_SIZE, Progress, check_number
from genkit.tokens.output import Output

FORMATS = ("png", "npy")


def safe_name(name: str, number: int, digits: int = 5) -> str:
    """A file name for image `number` made from `name`; it cannot point to another folder."""
    stem = re.sub(r"\.\w{1,5}$", "", name)
    return f"{number:0{digits}d}-{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[-80:]}"


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
    check_precision(mixed_precision, next(tokenizer.parameters()).device)
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        check_number(name, value, 1)
    if format not in FORMATS:
        raise OptionError(f"format can be {' or '.join(FORMATS)}, not {format!r}")
    output = Output(expanded(out), whole=False)
    output.check()
    model = fingerprint(tokenizer)
    if tokens.table.get("model", model) != model:
        raise CheckpointError("the indices were made by another model")
    content = tokens.check(tokenizer)
    if not len(tokens):
        raise GenkitError("the tokens hold no images to decode")
    if format == "npy" and tokens.ragged:
        raise OptionError("images of different sizes do not fit one array: use the format png")
    job = _Decoding(tokenizer, tokens, output, 1 if tokens.ragged else batch_size, mixed_precision)
    plan = {
        "command": "decode",
        "model": model,
        "number of images": len(tokens),
        "indices": content,
        "format": format,
        "precision": job.precision,
        **({"shard size": shard_size} if format == "npy" else {}),
    }
    with output.claimed(plan) as unfinished:
        if unfinished:
            size = shard_size if format == "npy" else job.batch_size
            parts = -(-len(tokens) // size)
            write, is_complete = (
                (job.array, job.has_array) if format == "npy" else (job.pictures, job.has_pictures)
            )
            own = output.own(parts)
            total = sum(min(size, len(tokens) - number * size) for number in own)
            done = 0
            for number in own:
                for count in write(number, size):
                    done += count
                    progress(done, total)
            if output.wait(parts, lambda number: is_complete(number, size)):
                output.clear()
    return len(tokens)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


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
        self.digits = max(5, len(str(len(tokens) - 1)))

    def pictures(self, number: int, size: int) -> Iterator[int]:
        """Write a PNG for each image of a part; yields how many are written."""
        start, paths = number * size, self._pictures_of(number, size)
        if not all(path.exists() for path in paths):
            for path, picture in zip(paths, self._decoded(start, start + size), strict=True):
                save_png(path, picture, lasting=False)
        yield len(paths)

    def has_pictures(self, number: int, size: int) -> bool:
        """Whether all pictures of a part exist."""
        return all(path.exists() for path in self._pictures_of(number, size))

    def _pictures_of(self, number: int, size: int) -> list[Path]:
        """The files of a part."""
        start = number * size
        return [
            self.output.folder / f"{safe_name(name, place, self.digits)}.png"
            for place, name in enumerate(self.tokens.names[start : start + size], start)
        ]

    def array(self, number: int, size: int) -> Iterator[int]:
        """Write an array of the images of a part; yields how many each batch adds."""
        start = number * size
        count = min(size, len(self.tokens) - start)
        if self.has_array(number, size):
            yield count
            return
        with replacing(self._array_of(number)) as temporary, temporary.open("wb") as file:
            for at in range(0, count, self.batch_size):
                pixels = self._decoded(start + at, start + min(at + self.batch_size, count))
                if not at:
                    _write_header(file, (count, *pixels.shape[1:]))
                file.write(pixels.tobytes())
                yield len(pixels)

    def has_array(self, number: int, size: int) -> bool:
        """Whether the array of a part exists."""
        return self._array_of(number).exists()

    def _array_of(self, number: int) -> Path:
        return self.output.folder / f"{number:05d}.npy"

    def _decoded(self, start: int, stop: int) -> Pixels:
        indices: list[Any] = [level.to(self.device) for level in self.tokens.batch(start, stop)]
        with mixed(self.device, self.mixed_precision):
            return to_uint8(self.tokenizer.decode(indices))
