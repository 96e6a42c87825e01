"""Tokenizers to self-describing safetensors files and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import genkit
from genkit.diagnosis import versions
from genkit.errors import CheckpointError, GenkitError
from genkit.files import replacing
from genkit.metadata import SCHEMA, describe_components, model_file, read_model, tokenizer_options
from genkit.tokenizer import Tokenizer


def save(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write a tokenizer to `path` (`.safetensors`), whole or not at all."""
    info = {
        "schema": SCHEMA,
        "versions": {"genkit": genkit.__version__, "torch": str(torch.__version__)},
        "components": describe_components(tokenizer.options),
        "levels": [
            {
                "stride": level.stride,
                "channels": level.channels,
                "codebook_size": size,
                **({"codebooks": count} if count > 1 else {}),
            }
            for level, (count, size) in zip(tokenizer.levels, tokenizer.codebooks, strict=True)
        ],
        "buffers": sorted(name for name, _ in tokenizer.named_buffers()),
        "training": tokenizer.facts,
    }
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in distinct_state(tokenizer).items()
    }
    write_tensors(Path(path), tensors, info)


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, a tensor that parts of it share under the first of its names alone."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    state = {}
    for name, value in module.state_dict().items():
        key = value.data_ptr(), value.shape, value.stride()
        if not value.numel() or key not in seen:
            state[name] = value
            seen.add(key)
    return state


def write_tensors(path: Path, tensors: dict[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write a safetensors file with `info` under the metadata key `genkit`."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "genkit": json.dumps(info)})
        except (SafetensorError, RuntimeError) as error:  # The latter of weights partly shared.
            raise OSError(" ".join(str(error).split())) from error


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of a tokenizer's weights, by which indices know the model that they belong to."""
    digest = hashlib.sha256()
    for name, value in sorted(distinct_state(tokenizer).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a run directory, `.safetensors` file or `hf://owner/name`, in eval mode.

    It is strict: `MissingComponent` names a component whose plugin is not installed, and
    `CheckpointError` says what else is wrong.
    """
    file = model_file(path)
    info, entries = read_model(file)
    options = tokenizer_options(info, file)
    try:
        tokenizer = Tokenizer(options)
    except Exception as error:  # Whatever somebody's class does when it is built.
        kind = "" if isinstance(error, GenkitError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"the model that '{file}' describes cannot be built: {kind}{error}\n{versions(info)}"
        ) from error
    own = distinct_state(tokenizer)
    expected = {name: list(value.shape) for name, value in own.items()}
    found = {name: entry["shape"] for name, entry in entries.items()}
    if found != expected:
        wrong = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        first = wrong[0]
        raise CheckpointError(
            f"the weights in '{file}' do not fit the model that it describes: of {len(wrong)} "
            f"tensors that differ the first is '{first}' "
            f"(file: {found.get(first, 'missing')}, "
            f"model: {expected.get(first, 'none of that name')}).\n{versions(info)}"
        )
    for name, value in own.items():
        kind = entries[name]["dtype"]
        # Whoever halves the precision of a file may; whole numbers are no weights.
        if value.is_floating_point() != bool(re.match(r"B?F\d", kind)):
            raise CheckpointError(
                f"'{file}' is damaged: '{name}' is {kind} where the model has {value.dtype}"
            )
    try:
        # Shared tensors, which stand in the file once, are missing under their other names.
        tokenizer.load_state_dict(load_file(file), strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be loaded: {error}") from error
    tokenizer.facts = dict(info.get("training") or {})
    return tokenizer.eval()
