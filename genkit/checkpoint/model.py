"""Tokenizers to self-describing safetensors files and back."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

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
from genkit.models import TokenizerOptions
from genkit.tokenizer import Tokenizer


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
    """The tokenizer inside what compiles, averages or distributes it."""
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
    tensors = {
        _uncompiled(name): value.detach().cpu().contiguous() for name, value in state.items()
    }
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            expected = _shapes(distinct_state(Tokenizer(tokenizer.options)))
    except Exception:  # Not every class can be built without memory; loading will check.
        return tensors
    if wrong := _differing(_shapes(tensors), expected):
        raise GenkitError(
            f"the tokenizer cannot be saved: {len(wrong)} tensors differ from the model that its "
            f"options describe, first '{wrong[0]}'; undo what renamed or replaced them, such as "
            "parametrizations"
        )
    return tensors


def _uncompiled(name: str) -> str:
    """A tensor's name without what `torch.compile` of a part adds to the names below it."""
    return name.replace("_orig_mod.", "")


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, a tensor that parts of it share under the first of its names alone."""
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
    """The names under which two mappings hold something different, or one of them nothing."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def write_tensors(path: Path, tensors: dict[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write a safetensors file with `info` under the metadata key `genkit`."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "genkit": json.dumps(info)})
            _order_metadata(temporary)
        except (SafetensorError, RuntimeError) as error:  # The latter of weights partly shared.
            raise OSError(" ".join(str(error).split())) from error


def _order_metadata(path: Path) -> None:
    """Put the metadata's keys in one order, so that a model is the same bytes whenever saved."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of a tokenizer's weights, by which indices know the model that they belong to."""
    digest = hashlib.sha256()
    for name, value in sorted(distinct_state(tokenizer).items()):
        digest.update(name.encode())
        # NumPy has no bfloat16, so the bytes are taken.
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
    try:
        tokenizer = _built(options, entries)
    except Exception as error:  # Whatever somebody's class does when it is built.
        kind = "" if isinstance(error, GenkitError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"the model that '{file}' describes cannot be built: {kind}{error}\n{versions(info)}"
        ) from error
    own = distinct_state(tokenizer)
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
        # Whoever halves the precision of a file may; whole numbers are no weights.
        floats, complexes = bool(re.match(r"B?F\d", kind)), kind == "C64"
        if (value.is_floating_point(), value.is_complex()) != (floats, complexes):
            raise CheckpointError(
                f"'{file}' is damaged: '{name}' is {kind} where the model has {value.dtype}"
            )
    try:
        with torch.device("cpu"):  # The caller may have set another default device.
            tensors = load_file(file)
        if _shapes(tensors) != found:
            raise CheckpointError(f"'{file}' was changed while it was read: load it again")
        # Shared tensors, which stand in the file once, are missing under their other names.
        tokenizer.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be loaded: {error}") from error
    tokenizer.facts = dict(info.get("training") or {})
    return tokenizer.eval()


class _TooLarge(CheckpointError):
    """A file describes a model that its weights are far too few for."""


def _built(options: TokenizerOptions, entries: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file's options, first without memory for its weights.

    So what a file asks for is refused before it takes memory that the file's weights do not.
    """
    try:
        with warnings.catch_warnings(), _bounded(entries), torch.device("meta"):
            warnings.simplefilter("ignore")
            Tokenizer(options)
    except _TooLarge:
        raise
    except Exception:  # Not every class can be built without memory; what fails will do so again.
        pass
    # A default device of the caller's, which may be without memory, is not the file's.
    with _bounded(entries), torch.device("cpu"):
        return Tokenizer(options)


@contextmanager
def _bounded(entries: Mapping[str, Any]) -> Iterator[None]:
    """`CheckpointError` once far more modules or values are registered than weights are there."""
    weights = sum(math.prod(entry["shape"]) for entry in entries.values())
    room = {"values": 16 * weights + 2**27, "modules and tensors": 16 * len(entries) + 2**13}
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() != thread:
            return
        room["modules and tensors"] -= 1
        if isinstance(value, Tensor) and not is_lazy(value):
            room["values"] -= value.numel()
        for what, left in room.items():
            if left < 0:
                raise _TooLarge(
                    f"it would have far more {what} than the file has weights for; "
                    "copy or save the file again"
                )

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
