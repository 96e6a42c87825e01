"""Tokenizers to self-describing safetensors files and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import genkit
from genkit.errors import CheckpointError
from genkit.files import replacing
from genkit.metadata import SCHEMA, describe_components, model_file, read_genkit, tokenizer_options
from genkit.tokenizer import Tokenizer


def save(
    tokenizer: Tokenizer, path: str | os.PathLike[str], training: Mapping[str, Any] | None = None
) -> None:
    """Write a tokenizer to `path` (`.safetensors`), whole or not at all.

    `training` holds facts of how it was trained.
    """
    info = {
        "schema": SCHEMA,
        "versions": {"genkit": genkit.__version__, "torch": str(torch.__version__)},
        "components": describe_components(tokenizer.options),
        "levels": [
            {"stride": level.stride, "channels": level.channels, "codebook_size": size}
            for level, size in zip(tokenizer.levels, tokenizer.codebook_sizes, strict=True)
        ],
        "buffers": sorted(name for name, _ in tokenizer.named_buffers()),
        "training": dict(training or {}),
    }
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()
    }
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, {"format": "pt", "genkit": json.dumps(info)})


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a run directory or `.safetensors` file, in eval mode.

    It is strict: `MissingComponent` names a component whose plugin is not installed, and
    `CheckpointError` says what else is wrong.
    """
    file = model_file(path)
    info, entries = read_genkit(file)
    tokenizer = Tokenizer(tokenizer_options(info, file))
    expected = {name: list(value.shape) for name, value in tokenizer.state_dict().items()}
    found = {name: entry["shape"] for name, entry in entries.items()}
    if found != expected:
        wrong = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        first = wrong[0]
        raise CheckpointError(
            f"the weights in '{file}' do not fit the model that it describes: "
            f"{len(wrong)} tensors differ, first '{first}' "
            f"(file: {found.get(first, 'missing')}, "
            f"model: {expected.get(first, 'none of that name')})"
        )
    try:
        tokenizer.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be loaded: {error}") from error
    return tokenizer.eval()
