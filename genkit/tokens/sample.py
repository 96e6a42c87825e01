"""New images from a prior: pictures, their indices, and a grid, written as they are drawn."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkit.captions import captioned
from genkit.checkpoint.model import fingerprint
from genkit.devices import check_precision, mixed, precision_text
from genkit.errors import GenkitError, OptionError
from genkit.files import check_place, expanded, is_file, replacing
from genkit.images import Pixels, from_values, picture_grid, save_png, to_uint8, to_values
from genkit.pictures import Picture, chosen_format, load_picture, save_picture
from genkit.prior import BATCH, Prior
from genkit.tokens.dataset import Tokens, load_tokens
from genkit.tokens.decode import safe_name
from genkit.tokens.encode import Progress, check_number
from genkit.tokens.engine import made_by
from genkit.tokens.files import FileShard, join, write_rows
from genkit.tokens.output import Output
from genkit.tokens.rows import Rows

_TOKENS, _GRID = "tokens.safetensors", "grid.png"
# Pictures in the grid.
_SHOWN = 64


def sample(
    prior: Prior,
    out: str | os.PathLike[str],
    number: int,
    *,
    seed: int = 0,
    classes: Sequence[int | str | None] | None = None,
    vectors: Tensor | None = None,
    kept: Sequence[Tensor] | None = None,
    rules: Mapping[str, Any] | None = None,
    batch_size: int = BATCH,
    format: str | None = None,
    npz: str | os.PathLike[str] | None = None,
    mixed_precision: str = "no",
    progress: Progress = lambda done, total: None,
) -> Tokens:
    """Draw images into a folder: a file each, a grid, and their indices; returns the tokens.

    The arguments are explained at `Prior.sample`. `format` is `png`, `tiff` or `npy`, by default
    the first that holds the images; they have the type and the units of the tokenizer's training
    images. `npz` names a file for all images, uint8
    `[N, H, W, channels]`, in the layout that evaluators of generated images read. The same call
    resumes after a kill, and the processes of a launcher share the work.
    """
    for name, value in (("number", number), ("batch_size", batch_size)):
        check_number(name, value, 1)
    check_precision(mixed_precision, prior.device)
    draws = _Draws(
        prior,
        expanded(out),
        number,
        batch_size,
        mixed_precision,
        seed,
        classes,
        vectors,
        kept,
        dict(rules or {}),
        format,
    )
    archive = None if npz is None else expanded(npz)
    draws.check(archive)
    with draws.output.claimed(draws.plan) as unfinished:
        if unfinished:
            own = draws.output.own(draws.parts)
            total = sum(len(draws.part(part)) for part in own)
            done = sum(len(draws.part(part)) for part in own if draws.is_complete(part))
            progress(done, total)
            for part in own:
                if not draws.is_complete(part):
                    draws.draw(part)
                    done += len(draws.part(part))
                    progress(done, total)
            if draws.output.wait(draws.parts, draws.is_complete):
                draws.finish(archive)
                draws.output.clear()
    draws.output.wait_for_first()
    return load_tokens(draws.output.out)


@dataclass
class _Draws:
    """The images that a call of `sample` draws, and their places; `size` is of a part."""

    prior: Prior
    folder: Path
    number: int
    size: int
    mixed_precision: str
    seed: int
    classes: Sequence[int | str | None] | None
    vectors: Tensor | None
    kept: Sequence[Tensor] | None
    rules: dict[str, Any]
    format: str | None

    def __post_init__(self) -> None:
        prior, number = self.prior, self.number
        tokenizer = prior.tokenizer
        self.ending = chosen_format(self.format, tokenizer.channels, tokenizer.values)
        self.output = Output(self.folder / _TOKENS, whole=True, around=self.folder)
        self.parts = -(-number // self.size)
        conditioned = self.classes is not None or self.vectors is not None
        prior.checked(self.rules, conditioned)
        self.condition = prior.condition(number, self.classes, self.vectors)
        self.digits = max(5, len(str(number - 1)))
        self.plan = {
            "command": "sample",
            "prior": fingerprint(prior.model),
            "tokenizer": fingerprint(prior.tokenizer),
            "number of images": number,
            "seed": self.seed,
            "condition": _hash([self.condition]),
            "kept indices": _hash(self.kept or []),
            "rules": self.rules,
            "batch size": self.size,
            "format": self.ending,
            "precision": precision_text(prior.tokenizer, prior.device, self.mixed_precision),
        }
        # The facts of a token file whose indices were not encoded from images.
        self.table = {
            **made_by(prior.tokenizer),
            "resolution": list(prior.size),
            "sampled": {key: self.plan[key] for key in ("prior", "seed", "rules")},
        }

    def check(self, archive: Path | None) -> None:
        """`GenkitError` if there is no place for the output."""
        if is_file(self.folder):
            raise GenkitError(f"'{self.folder}' is a file: name a folder")
        begun = self.output.process or self.output.folder.exists()
        if not begun and self.folder.is_dir() and any(self.folder.iterdir()):
            raise GenkitError(f"'{self.folder}' is a folder with files already: name another --out")
        self.output.check()
        if archive is not None:
            if archive.suffix != ".npz":
                raise OptionError(f"--npz {archive} must end in .npz")
            check_place(archive)

    def part(self, number: int) -> range:
        """The numbers of the images of a part."""
        return range(self.number)[number * self.size : (number + 1) * self.size]

    def is_complete(self, number: int) -> bool:
        """Whether a part is drawn."""
        return self._shard(number).exists()

    def draw(self, number: int) -> None:
        """Draw a part: its pictures first, then the indices, which mark it as complete."""
        part = self.part(number)
        here = slice(part.start, part.stop)
        with mixed(self.prior.device, self.mixed_precision):
            indices = self.prior.sample(
                len(part),
                seed=self.seed,
                first=part.start,
                classes=None if self.classes is None else self.classes[here],
                vectors=None if self.vectors is None else self.vectors[here],
                kept=self._kept(here),
                batch_size=self.size,
                **self.rules,
            )
            tokenizer = self.prior.tokenizer
            pictures = to_values(tokenizer.decode(indices), tokenizer.values)
        names = self._names(part)
        for name, picture in zip(names, pictures, strict=True):
            save_picture(self._path(name), picture)
        labels = None
        if self.classes is not None and self.condition is not None:
            labels = self.condition[here].cpu()
        levels = [level.to(torch.int32).cpu() for level in indices]
        rows = Rows(levels, names, labels)
        write_rows(self._shard(number), rows, self.prior.classes, self.table)

    def finish(self, archive: Path | None) -> None:
        """Write what needs all images; the tokens come last."""
        names = self._names(range(self.number))
        first = np.stack([load_picture(self._path(name)) for name in names[:_SHOWN]])
        rules = "".join(f", {name} {value}" for name, value in self.rules.items())
        words = f"{len(first)} of {self.number} drawn images; seed {self.seed}{rules}"
        save_png(self.folder / _GRID, captioned(picture_grid(self._read(first)), words))
        if archive is not None:
            pictures = (load_picture(self._path(name))[None] for name in names)
            _write_npz(archive, (to_uint8(self._read(each))[0] for each in pictures), self.number)
        shards = [FileShard(self._shard(part)) for part in range(self.parts)]
        join(shards, self.output.out, self.table)

    def _kept(self, here: slice) -> list[Tensor] | None:
        if self.kept is None:
            return None
        return [level if len(level) == 1 else level[here] for level in self.kept]

    def _names(self, part: range) -> list[str]:
        classes = self.prior.classes
        result = []
        for image in part:
            label = -1
            if self.classes is not None and self.condition is not None:
                label = int(self.condition[image])
            result.append(
                safe_name(classes[label], image, self.digits)
                if label >= 0
                else f"{image:0{self.digits}d}"
            )
        return result

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.ending}"

    def _read(self, pictures: Picture) -> Tensor:
        """Images in [-1, 1] from the pictures of files `[B, H, W, C]`."""
        return from_values(pictures, self.prior.tokenizer.values)

    def _shard(self, number: int) -> Path:
        return self.output.folder / f"{number:05d}.safetensors"


def _hash(tensors: Sequence[Tensor | None]) -> str:
    """A hash of tensors; empty for none."""
    known = [each.cpu().contiguous() for each in tensors if each is not None]
    if not known:
        return ""
    digest = hashlib.sha256()
    for each in known:
        digest.update(f"{each.dtype} {list(each.shape)}".encode())
        digest.update(each.numpy().tobytes())
    return digest.hexdigest()


def _write_npz(path: Path, pictures: Iterator[Pixels], number: int) -> None:
    """Write pictures `[H, W, C]` as the array `arr_0` of an .npz file, one at a time."""
    first = next(pictures)
    header = {"descr": "|u1", "fortran_order": False, "shape": (number, *first.shape)}
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.tobytes())
        for picture in pictures:
            file.write(picture.tobytes())
