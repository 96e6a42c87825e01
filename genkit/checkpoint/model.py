"""Tokenizers to self-describing safetensors files and back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import genkit
from genkit.checkpoint.metadata import (
    SCHEMA,
    describe_components,
    model_file,
    read_model,
    tokenizer_options,
    versions,
)
from genkit.errors import CheckpointError, GenkitError
from genkit.files import expanded, replacing
from genkit.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def save(tokenizer: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a tokenizer to `path` (`.safetensors`), whole or not at all.

    It may be compiled, or wrapped for training on several devices. `GenkitError` if its tensors
    differ from the model that its options describe: such a file could not be loaded.
    """
    tokenizer = _plain(tokenizer)
    write_tensors(expanded(path), _tensors(tokenizer), description(tokenizer))


def description(tokenizer: Tokenizer) -> dict[str, Any]:
    """Components, levels and training facts of a tokenizer, as a model file holds them."""
    return {
        "schema": SCHEMA,
        "versions": {"genkit": genkit.__version__, "torch": str(torch.__version__)},
        "components": describe_components(tokenizer.options),
        "channels": tokenizer.channels,
        "levels": [
            {
                "stride": level.stride,
                "channels": level.channels,
                "codebook_size": size,
                **({"codebooks": count} if count > 1 else {}),
            }
            for level, (count, size) in zip(tokenizer.levels, tokenizer.codebooks, strict=True)
        ],
        "buffers": sorted(_uncompiled(name) for name, _ in tokenizer.named_buffers()),
        "training": tokenizer.facts,
    }


def _plain(module: nn.Module) -> Tokenizer:
    """The tokenizer inside a wrapper that compiles, averages or distributes it."""
    while not isinstance(module, Tokenizer):
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            raise GenkitError(f"save takes a genkit.Tokenizer, not {type(module).__name__}")
        module = inner
    return module


def _tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The tensors of a model file, under the names that they have in a new tokenizer."""
    state = distinct_state(tokenizer)
    if any(value.is_meta for value in state.values()):
        raise GenkitError("the tokenizer cannot be saved: it lies on the meta device, without data")
    tensors = plain_tensors(state)
    expected = _described(lambda: Tokenizer(tokenizer.options, tokenizer.channels))
    if expected is None:  # Loading will check.
        return tensors
    if wrong := _differing(_shapes(tensors), _shapes(expected)):
        raise GenkitError(
            f"the tokenizer cannot be saved: {len(wrong)} tensors differ from the model that its "
            f"options describe, first '{wrong[0]}'; undo what renamed or replaced them, such as "
            "parametrizations"
        )
    return tensors


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state as a file holds them."""
    return {_uncompiled(name): value.detach().cpu().contiguous() for name, value in state.items()}


def _described(build: Callable[[], nn.Module]) -> dict[str, Tensor] | None:
    """The tensors of the module that `build` returns, on the meta device, without memory.

    None if a class cannot be built there.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return distinct_state(build())
    except Exception:  # A third party's class may raise anything.
        return None


def _uncompiled(name: str) -> str:
    """A tensor's name without the prefix that `torch.compile` of a part adds."""
    return name.replace("_orig_mod.", "")


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, with a shared tensor under the first of its names alone."""
    seen: set[tuple[Any, ...]] = set()
    state = {}
    for name, value in module.state_dict().items():
        # On the meta device every tensor has the address 0.
        address = value.data_ptr() or value.untyped_storage()._cdata
        key = address, value.shape, value.stride()
        if not value.numel() or key not in seen:
            state[name] = value
            seen.add(key)
    return state


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values differ between two mappings, or that one of them lacks."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def write_tensors(path: Path, tensors: dict[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write a safetensors file with `info` under the metadata key `genkit`."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "genkit": json.dumps(info)})
        except (SafetensorError, RuntimeError) as error:  # RuntimeError if weights overlap in part.
            raise OSError(" ".join(str(error).split())) from error
    _log.debug("wrote '%s', %.1f MB", path, path.stat().st_size / 1e6)


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights, which for example ties indices to the model that made them."""
    digest = hashlib.sha256()
    for name, value in sorted(distinct_state(module).items()):
        digest.update(name.encode())
        # NumPy has no bfloat16, so bytes are hashed.
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a run directory, `.safetensors` file or `hf://owner/name`, in eval mode.

    It is strict: `MissingComponent` names a component whose plugin is not installed, and
    `CheckpointError` says what else is wrong.
    """
    file = model_file(path)
    info, entries = read_model(file)
    options = tokenizer_options(info, file)
    # A file may describe a model far larger than itself, so nothing is allocated before this check.
    if (described := _described(lambda: Tokenizer(options, info["channels"]))) is not None:
        check_entries(entries, described, info, file)
    tokenizer = built(lambda: Tokenizer(options, info["channels"]), info, file)
    fill(tokenizer, entries, info, file)
    tokenizer.facts = dict(info.get("training") or {})
    _log.debug("loaded the tokenizer '%s'", file)
    return tokenizer.eval()


def built(build: Callable[[], Module], info: Mapping[str, Any], file: Path) -> Module:
    """The module of a file, built on the CPU; `CheckpointError` if that fails."""
    try:
        with torch.device("cpu"):  # The caller may have set another default device.
            return build()
    except Exception as error:  # A third party's class may raise anything.
        kind = "" if isinstance(error, GenkitError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"the model that '{file}' describes cannot be built: {kind}{error}\n{versions(info)}"
        ) from error


def fill(
    module: nn.Module, entries: Mapping[str, Any], info: Mapping[str, Any], file: Path
) -> None:
    """Load the tensors of a file, whose header has `entries`, into a module."""
    check_entries(entries, distinct_state(module), info, file)
    try:
        with torch.device("cpu"):
            tensors = load_file(file)
        if _shapes(tensors) != {name: entry["shape"] for name, entry in entries.items()}:
            raise CheckpointError(f"'{file}' was changed while it was read: load it again")
        # The file holds shared tensors once; their other names are missing.
        module.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be loaded: {error}") from error


def check_entries(
    entries: Mapping[str, Any], own: Mapping[str, Tensor], info: Mapping[str, Any], file: Path
) -> None:
    """`CheckpointError` if a file's tensors have other names, shapes or kinds than the model's."""
    expected = _shapes(own)
    found = {name: entry["shape"] for name, entry in entries.items()}
    if wrong := _differing(found, expected):
        first = wrong[0]
        raise CheckpointError(
            f"the weights in '{file}' do not fit the model that it describes: of {len(wrong)} "
            f"tensors that differ the first is '{first}' "
            f"(file: {found.get(first, 'missing')}, "
            f"model: {expected.get(first, 'none of that name')}).\n{versions(info)}"
        )
    for name, value in own.items():
        kind = entries[name]["dtype"]
        # A file may store floats in half precision; whole numbers cannot be weights.
        floats, complexes = bool(re.match(r"B?F\d", kind)), kind == "C64"
        if (value.is_floating_point(), value.is_complex()) != (floats, complexes):
            raise CheckpointError(
                f"'{file}' is damaged: '{name}' is {kind} where the model has {value.dtype}"
            )
