"""Indices to images: pictures or arrays, written as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from genkit.checkpoint.model import fingerprint
from genkit.devices import check_precision, mixed, precision_text
from genkit.errors import CheckpointError, GenkitError, OptionError
from genkit.files import expanded, replacing
from genkit.images import to_values
from genkit.pictures import Picture, chosen_format, save_picture
from genkit.size import NATIVE
from genkit.tiles import check_tiles, decode_tiles, is_whole
from genkit.tokenizer import Tokenizer
from genkit.tokens import SHARD_SIZE, TILE
from genkit.tokens.dataset import Tokens
from genkit.tokens.encode import Progress, check_number
from genkit.tokens.output import Output
from genkit.tokens.rows import Ragged

# Rows whose sizes are read at a time.
_CHUNK = 4096


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
    format: str | None = None,
    shard_size: int = SHARD_SIZE,
    mixed_precision: str = "no",
    tile: int | None = None,
    approximate_tiles: bool = False,
    progress: Progress = lambda done, total: None,
) -> int:
    """Decode tokens into a folder; returns the number of images.

    `format` `png` and `tiff` write a picture per image, `npy` arrays `[N, H, W, channels]` of
    `shard_size` images. All have the type and the units of the originals. By default it is the
    first format that holds the images. The same call resumes after a kill, and the processes of a
    launcher share the work. Raises `CheckpointError`, before anything is written, for tokens that
    are damaged or were made by another tokenizer.
    """
    check_precision(mixed_precision, next(tokenizer.parameters()).device)
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        check_number(name, value, 1)
    kind = chosen_format(format, tokenizer.channels, tokenizer.values)
    output = Output(expanded(out), whole=False)
    output.check()
    model = fingerprint(tokenizer)
    content = _checked(tokens, tokenizer, model)
    ragged = tokens.ragged or tokens.table.get("resolution") == NATIVE
    if kind == "npy" and ragged:
        raise OptionError("images of different sizes do not fit one array: give png or tiff")
    images = _Images(tokenizer, tokens, mixed_precision, tile, approximate_tiles)
    size = images.largest()
    approximated = check_tiles(tokenizer, "decode", size, tile, approximate_tiles)
    batch_size = batch_size if is_whole(size, tile) and not ragged else 1
    files: _Pictures | _Arrays = (
        _Arrays(images, output.folder, shard_size, batch_size)
        if kind == "npy"
        else _Pictures(images, output.folder, kind, batch_size)
    )
    plan = {
        "command": "decode",
        "model": model,
        "number of images": len(tokens),
        "indices": content,
        "format": kind,
        "precision": images.precision,
        **({"shard size": shard_size} if kind == "npy" else {}),
        **({"tiles": f"approximate, of {tile or TILE} pixels"} if approximated else {}),
    }
    with output.claimed(plan) as unfinished:
        if unfinished:
            _write(files, images, output, progress)
    return len(tokens)


def _write(files: _Pictures | _Arrays, images: _Images, output: Output, progress: Progress) -> None:
    """Write this process's parts, and end the output when all parts exist."""
    parts = -(-len(images.tokens) // files.size)
    own = output.own(parts)
    total = sum(len(images.part(number, files.size)) for number in own)
    done = 0
    for number in own:
        for count in files.write(number):
            done += count
            progress(done, total)
    if output.wait(parts, files.is_complete):
        output.clear()


def _checked(tokens: Tokens, tokenizer: Tokenizer, model: str) -> str:
    """A hash of tokens; `CheckpointError` if they are damaged or of another model."""
    if tokens.table.get("model", model) != model:
        raise CheckpointError("the indices were made by another model")
    content = tokens.check(tokenizer)
    if not len(tokens):
        raise GenkitError("the tokens hold no images to decode")
    return content


class _Images:
    """The images of some tokens, decoded when asked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: Tokens,
        mixed_precision: str,
        tile: int | None,
        approximate_tiles: bool,
    ) -> None:
        self.tokenizer, self.tokens, self.mixed_precision = tokenizer, tokens, mixed_precision
        self.tile, self.approximate_tiles = tile, approximate_tiles
        self.device = next(tokenizer.parameters()).device
        self.precision = precision_text(tokenizer, self.device, mixed_precision)

    def part(self, number: int, size: int) -> range:
        """The numbers of the images of a part."""
        return range(len(self.tokens))[number * size : (number + 1) * size]

    def largest(self) -> tuple[int, int]:
        """The largest height and the largest width."""
        stride = self.tokenizer.levels[0].stride
        height = width = 0
        for start in range(0, len(self.tokens), _CHUNK if self.tokens.ragged else len(self.tokens)):
            # Images of one size need no more than the first.
            stop = start + (_CHUNK if self.tokens.ragged else 1)
            level = self.tokens.rows(start, stop).levels[0]
            grids = level.grids.tolist() if isinstance(level, Ragged) else [level.shape[1:3]]
            height = max(height, *(rows for rows, _ in grids))
            width = max(width, *(columns for _, columns in grids))
        return height * stride, width * stride

    def decoded(self, part: range) -> Picture:
        """Images `[B, H, W, channels]` in the originals' units."""
        rows = self.tokens.rows(part.start, part.stop)
        with mixed(self.device, self.mixed_precision):
            images: Picture = decode_tiles(
                self.tokenizer,
                rows.stacked(),
                self.tile,
                approximate=self.approximate_tiles,
                convert=partial(to_values, values=self.tokenizer.values),
            )
        if self.tokens.table.get("resolution") == NATIVE and rows.sizes is not None:
            # Without the padding. Such images are decoded one by one.
            height, width = rows.sizes[0].tolist()
            images = images[:, :height, :width]
        return images


class _Pictures:
    """A file for each image. A part is a batch."""

    def __init__(self, images: _Images, folder: Path, format: str, size: int) -> None:
        self.images, self.folder, self.format, self.size = images, folder, format, size
        self.digits = max(5, len(str(len(images.tokens) - 1)))

    def write(self, number: int) -> Iterator[int]:
        """Write the missing pictures of a part; yields how many it has."""
        part, paths = self.images.part(number, self.size), self._paths(number)
        if not self.is_complete(number):
            for path, picture in zip(paths, self.images.decoded(part), strict=True):
                save_picture(path, picture)
        yield len(paths)

    def is_complete(self, number: int) -> bool:
        """Whether all pictures of a part exist."""
        return all(path.exists() for path in self._paths(number))

    def _paths(self, number: int) -> list[Path]:
        part = self.images.part(number, self.size)
        names = self.images.tokens.names[part.start : part.stop]
        return [
            self.folder / f"{safe_name(name, place, self.digits)}.{self.format}"
            for place, name in zip(part, names, strict=True)
        ]


class _Arrays:
    """An array for each part."""

    def __init__(self, images: _Images, folder: Path, size: int, batch_size: int) -> None:
        self.images, self.folder = images, folder
        self.size, self.batch_size = size, batch_size

    def write(self, number: int) -> Iterator[int]:
        """Write the array of a part, if it is missing; yields how many images each batch adds."""
        part = self.images.part(number, self.size)
        if self.is_complete(number):
            yield len(part)
            return
        with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
            for start in range(0, len(part), self.batch_size):
                pixels = self.images.decoded(part[start : start + self.batch_size])
                if not start:
                    shape = len(part), *pixels.shape[1:]
                    descr = np.lib.format.dtype_to_descr(pixels.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(pixels.tobytes())
                yield len(pixels)

    def is_complete(self, number: int) -> bool:
        """Whether the array of a part exists."""
        return self._path(number).exists()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
