"""Indices of many images in one safetensors file."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genkit.checkpoint.header import HEADER_LIMIT
from genkit.checkpoint.metadata import SCHEMA, read_genkit
from genkit.checkpoint.model import fingerprint, write_tensors
from genkit.data.reading import batches, none_readable
from genkit.errors import CheckpointError, GenkitError
from genkit.files import expanded
from genkit.interfaces import Split
from genkit.tokenizer import Tokenizer

# Bytes of a header that are left for everything but the names.
_REST_OF_HEADER = 10**5


class Tokens(NamedTuple):
    """Indices `[N, h, w]` a level, finest first, of N images, their names, and whose they are.

    A level of Q codebooks has `[N, h, w, Q]`.
    """

    levels: list[Tensor]
    names: list[str]
    model: str


def encode(tokenizer: Tokenizer, dataset: Split, batch_size: int = 32) -> Tokens:
    """The indices of every image of a data set that can be read.

    `GenkitError`, before anything is encoded, if the names are too many for one file.
    """
    check_names([dataset.name(index) for index in range(len(dataset))])
    device = next(tokenizer.parameters()).device
    names: list[str] = []
    parts: list[list[Tensor]] = [[] for _ in tokenizer.levels]
    for kept, images in batches(dataset, len(dataset), batch_size, device):
        names += [dataset.name(index) for index in kept]
        for part, indices in zip(parts, tokenizer.encode(images), strict=True):
            part.append(indices.to("cpu", torch.int32))
    if not names:
        raise none_readable(dataset, "images")
    return Tokens([torch.cat(part) for part in parts], names, fingerprint(tokenizer))


def check_names(names: list[str]) -> None:
    """`GenkitError` if one file cannot hold the names of so many images."""
    # The header holds JSON inside a JSON string.
    size = len(json.dumps(json.dumps(names)))
    if size > HEADER_LIMIT - _REST_OF_HEADER:
        raise GenkitError(
            f"the names of {len(names)} images take {size // 10**6} MB, and the header of one file "
            f"holds {HEADER_LIMIT // 10**6} MB: encode the images in several parts"
        )


def save_tokens(tokens: Tokens, path: str | os.PathLike[str]) -> None:
    """Write indices to a safetensors file.

    It holds int32 tensors `level0`, `level1`, … and the names in its metadata.
    """
    check_names(tokens.names)
    info = {"schema": SCHEMA, "tokens": {"names": tokens.names, "model": tokens.model}}
    tensors = {f"level{index}": level.contiguous() for index, level in enumerate(tokens.levels)}
    write_tensors(expanded(path), tensors, info)


def load_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Tokens:
    """The indices in a file that `save_tokens` wrote; `CheckpointError` if it is none.

    With a `tokenizer` it is also one if the indices are another's.
    """
    path = expanded(path)
    info, entries = read_genkit(path)
    table = info.get("tokens")
    names = table.get("names") if isinstance(table, dict) else None
    expected = {f"level{index}" for index in range(len(entries))}
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or set(entries) != expected
        or not entries
    ):
        raise CheckpointError(f"'{path}' holds no indices: genkit encode writes files that do")
    if any(
        len(entry["shape"]) not in (3, 4)
        or entry["shape"][0] != len(names)
        or not all(entry["shape"][1:])
        or entry["dtype"] != "I32"
        for entry in entries.values()
    ):
        raise CheckpointError(
            f"'{path}' is damaged: its indices are not int32 [{len(names)}, h, w] "
            f"or [{len(names)}, h, w, codebooks]"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {error}") from error
    if {name: list(value.shape) for name, value in tensors.items()} != {
        name: entry["shape"] for name, entry in entries.items()
    }:
        raise CheckpointError(f"'{path}' was changed while it was read: load it again")
    model = str(table.get("model")) if isinstance(table, dict) else ""
    if tokenizer is not None and model != fingerprint(tokenizer):
        raise CheckpointError(f"the indices in '{path}' were made by another model")
    levels = [tensors[f"level{index}"] for index in range(len(tensors))]
    if tokenizer is not None:
        try:
            tokenizer.check_indices(levels)
        except GenkitError as error:
            raise CheckpointError(f"'{path}' is damaged: {error}") from error
    return Tokens(levels, names, model)
