"""Files of indices: many images in one safetensors file. docs/formats.md has the schema."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genkit.checkpoint.metadata import SCHEMA, read_genkit
from genkit.checkpoint.model import fingerprint, write_tensors
from genkit.data.reading import batches, none_readable
from genkit.errors import CheckpointError, GenkitError
from genkit.files import expanded
from genkit.interfaces import Dataset, Split
from genkit.tokenizer import Tokenizer

# The version of the tensors' layout. Files without a version hold names in their metadata.
VERSION = 2
_TEXTS = ("name", "caption", "class")
# Optional tensors with one row per image: dtype, and shape of a row.
_FACTS: dict[str, tuple[str, list[int]]] = {
    "label": ("I64", []),
    "size": ("I32", [2]),
    "view": ("I32", [6]),
}


class Ragged(NamedTuple):
    """Indices of images with different grids: `[M]` or `[M, Q]`, and the grids `[N, 2]`."""

    indices: Tensor
    grids: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """The indices `[B, h, w]` of images with equal grids; `GenkitError` for different ones."""
        places = self.grids.long().prod(1).cumsum(0)
        grid = self.grids[start].tolist()
        if (self.grids[start:stop] != self.grids[start]).any():
            raise GenkitError("images of different sizes cannot be decoded in one batch")
        first = int(places[start - 1]) if start else 0
        found = self.indices[first : int(places[min(stop, len(places)) - 1])]
        return found.reshape(-1, *grid, *self.indices.shape[1:])


class Tokens(NamedTuple):
    """Indices of N images, with the images' names, labels and other facts.

    A level, finest first, holds indices `[N, h, w]`, or `[N, h, w, Q]` with Q codebooks; it is
    `Ragged` if grids differ. `labels` are int64 `[N]`: positions in `classes`, or -1 for none.
    `captions` are N texts, empty for none. `sizes` are the original heights and widths `[N, 2]`.
    `views` are `[N, 6]`: the view's number, the crop's top, left, height and width in the original,
    and 1 if it is mirrored. `model` and `source` are fingerprints.
    """

    levels: list[Tensor | Ragged]
    names: list[str]
    model: str
    labels: Tensor | None = None
    captions: list[str] | None = None
    classes: Sequence[str] = ()
    sizes: Tensor | None = None
    views: Tensor | None = None
    source: str = ""
    precision: str = ""

    @property
    def ragged(self) -> bool:
        """Whether images have different grids."""
        return any(isinstance(level, Ragged) for level in self.levels)

    def batch(self, start: int, stop: int) -> list[Tensor]:
        """The indices of images `start` to `stop - 1`, as `Tokenizer.decode` takes them."""
        return [
            level.rows(start, stop) if isinstance(level, Ragged) else level[start:stop]
            for level in self.levels
        ]


def encode(tokenizer: Tokenizer, images: Split | Dataset, batch_size: int = 32) -> Tokens:
    """The indices of every readable image of a split, with names, labels and captions.

    A data set is encoded whole.
    """
    if hasattr(images, "split"):
        images = images.split("all")
    parameter = next(tokenizer.parameters())
    parts: list[list[Tensor]] = [[] for _ in tokenizer.levels]
    kept: list[int] = []
    for numbers, batch in batches(images, len(images), batch_size, parameter.device):
        kept += numbers
        for part, indices in zip(parts, tokenizer.encode(batch), strict=True):
            part.append(indices.to("cpu", torch.int32))
    if not kept:
        raise none_readable(images, "images")
    labels = [images.label(number) for number in kept]
    captions = [images.caption(number) or "" for number in kept]
    return Tokens(
        [torch.cat(part) for part in parts],
        [images.name(number) for number in kept],
        fingerprint(tokenizer),
        torch.tensor([-1 if label is None else label for label in labels]),
        captions if any(captions) else None,
        images.classes,
        source=images.fingerprint,
        precision=str(parameter.dtype).removeprefix("torch."),
    )


def save_tokens(tokens: Tokens, path: str | os.PathLike[str]) -> None:
    """Write indices and the facts about their images to a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for index, level in enumerate(tokens.levels):
        if isinstance(level, Ragged):
            tensors[f"level{index}.grid"] = level.grids.to(torch.int32).contiguous()
            level = level.indices
        tensors[f"level{index}"] = level.to(torch.int32).contiguous()
    for name, texts in zip(
        _TEXTS, (tokens.names, tokens.captions, tokens.classes or None), strict=True
    ):
        if texts is not None:
            tensors |= _packed(name, texts)
    facts = {"label": tokens.labels, "size": tokens.sizes, "view": tokens.views}
    for name, values in facts.items():
        if values is not None:
            kind = torch.int64 if _FACTS[name][0] == "I64" else torch.int32
            tensors[name] = values.to(kind).contiguous()
    about = {
        "version": VERSION,
        "images": len(tokens.names),
        "model": tokens.model,
        "source": tokens.source,
        "precision": tokens.precision,
    }
    write_tensors(expanded(path), tensors, {"schema": SCHEMA, "tokens": about})


def load_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Tokens:
    """Read the indices in a file that `save_tokens` wrote.

    Raises `CheckpointError` for any other file and, given a `tokenizer`, for the indices of another
    tokenizer.
    """
    path = expanded(path)
    info, entries = read_genkit(path)
    table = info.get("tokens")
    if not isinstance(table, dict) or "level0" not in entries:
        raise CheckpointError(f"'{path}' holds no indices: genkit encode writes files that do")
    if type(version := table.get("version", 1)) is not int or version > VERSION:
        raise CheckpointError(
            f"'{path}' has version {version!r} of token files; this genkit reads up to {VERSION}: "
            "use a newer genkit"
        )
    names = table.get("names") if version == 1 else None
    count = len(names) if isinstance(names, list) else table.get("images")
    if type(count) is not int:
        raise CheckpointError(f"'{path}' holds no indices: genkit encode writes files that do")
    if wrong := _wrong(entries, count, version):
        raise CheckpointError(f"'{path}' is damaged: {wrong}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {error}") from error
    if {name: list(value.shape) for name, value in tensors.items()} != {
        name: entry["shape"] for name, entry in entries.items()
    }:
        raise CheckpointError(f"'{path}' was changed while it was read: load it again")
    try:
        tokens = _read(tensors, table, count)
    except (GenkitError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error
    if tokenizer is not None:
        _check_model(tokens, tokenizer, path)
    return tokens


def _check_model(tokens: Tokens, tokenizer: Tokenizer, path: os.PathLike[str]) -> None:
    if tokens.model != fingerprint(tokenizer):
        raise CheckpointError(f"the indices in '{path}' were made by another model")
    step = 1 if tokens.ragged else max(1, len(tokens.names))
    try:
        for start in range(0, len(tokens.names), step):
            tokenizer.check_indices(tokens.batch(start, start + step))
    except GenkitError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error


def _packed(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as their concatenated bytes and the offsets: each start, and the last end."""
    parts = [text.encode("utf-8", "backslashreplace") for text in texts]
    ends = torch.tensor([0, *map(len, parts)]).cumsum(0)
    whole = torch.frombuffer(bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8)
    return {f"{name}.bytes": whole[: int(ends[-1])], f"{name}.offsets": ends}


def _unpacked(tensors: Mapping[str, Tensor], name: str) -> list[str] | None:
    """The texts of `_packed`, or None if the file has none of that name."""
    if f"{name}.bytes" not in tensors:
        return None
    whole, ends = tensors[f"{name}.bytes"].numpy().tobytes(), tensors[f"{name}.offsets"].tolist()
    if ends[0] != 0 or ends[-1] != len(whole) or sorted(ends) != ends:
        raise GenkitError(f"the offsets of its {name}s do not match their bytes")
    return [whole[start:end].decode() for start, end in pairwise(ends)]


def _wrong(entries: Mapping[str, Any], count: int, version: int) -> str:
    """The first fault in the tensors' dtypes and shapes, or an empty text."""
    forms = {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}
    levels = sum(name.startswith("level") and name[5:].isdecimal() for name in forms)
    known: set[str] = set()
    for level in (f"level{index}" for index in range(levels)):
        known |= {level, f"{level}.grid"}
        kind, shape = forms.get(level, ("", []))
        if f"{level}.grid" in forms:
            fits = len(shape) in (1, 2) and forms[f"{level}.grid"] == ("I32", [count, 2])
        else:
            fits = len(shape) in (3, 4) and shape[0] == count and all(shape[1:])
        if kind != "I32" or not fits:
            return (
                f"its indices are not int32 [{count}, h, w] or [{count}, h, w, codebooks], or, "
                "with a grid per image, [values]"
            )
    if version == 1:
        return "" if forms.keys() <= known else "it holds tensors that are not indices"
    for name, (kind, row) in _FACTS.items():
        known.add(name)
        if name in forms and forms[name] != (kind, [count, *row]):
            return f"its {name} does not have the shape {[count, *row]}"
    for name in _TEXTS:
        known |= (pair := {f"{name}.bytes", f"{name}.offsets"})
        if found := pair & forms.keys():
            kind, shape = forms.get(f"{name}.offsets", ("", []))
            rows = shape[0] if len(shape) == 1 else 0
            sound = kind == "I64" and (rows > 0 if name == "class" else rows == count + 1)
            text = forms.get(f"{name}.bytes", ("", []))
            if len(found) < 2 or not sound or text[0] != "U8" or len(text[1]) != 1:
                return f"its {name}s are not bytes with {count + 1} offsets"
    if "name.bytes" not in forms:
        return "it does not name its images"
    return "" if forms.keys() <= known else "it holds tensors with unknown names"


def _read(tensors: Mapping[str, Tensor], table: Mapping[str, Any], count: int) -> Tokens:
    levels: list[Tensor | Ragged] = []
    while (level := tensors.get(f"level{len(levels)}")) is not None:
        grids = tensors.get(f"level{len(levels)}.grid")
        if grids is not None:
            places = grids.long().prod(1)
            # Compare each grid too: the sum of huge ones could overflow to the right number.
            if (grids < 1).any() or (places > len(level)).any() or places.sum() != len(level):
                raise GenkitError("its grids do not match its indices")
            levels.append(Ragged(level, grids))
        else:
            levels.append(level)
    names = _unpacked(tensors, "name") or table.get("names") or []
    if not all(isinstance(name, str) for name in names):
        raise GenkitError("its names are not text")
    classes, labels = _unpacked(tensors, "class") or [], tensors.get("label")
    unknown = labels is not None and ((labels < -1) | (labels >= len(classes))).any()
    if unknown:
        raise GenkitError("its labels are not numbers of its classes")
    return Tokens(
        levels,
        list(names),
        str(table.get("model")),
        labels,
        _unpacked(tensors, "caption"),
        classes,
        tensors.get("size"),
        tensors.get("view"),
        str(table.get("source", "")),
        str(table.get("precision", "")),
    )
