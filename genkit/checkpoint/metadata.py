"""The metadata of a model file: components, levels and training facts, read from its header.

Reading it needs neither torch nor pickle, and runs no code that the file names.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genkit.checkpoint.header import is_text, read_header
from genkit.checkpoint.hub import fetch, is_address
from genkit.errors import CheckpointError, GenkitError, HoldsPrior, MissingComponent
from genkit.files import CONFIG, MODEL, TOKENIZER, expanded, is_file, is_folder
from genkit.interfaces import Values
from genkit.models import RGB, TokenizerOptions
from genkit.plugin.component import REGISTERED
from genkit.plugin.options import NONE, Part
from genkit.plugin.registry import registry
from genkit.settings import choose, resolve, settings_of, without_local

SCHEMA = 1


def model_file(path: str | os.PathLike[str]) -> Path:
    """The model file of a checkpoint.

    That is `path` itself, the model in it if it is a run directory, or the local copy of the model
    on the hub that it names.
    """
    if is_address(path):
        return fetch(str(path), MODEL)
    found = expanded(path)
    if is_folder(found):
        found /= MODEL
        if not is_file(found):
            started = (found.parent / CONFIG).is_file()
            advice = (
                "its run has not saved a model yet"
                if started
                else "name a run directory or a .safetensors file"
            )
            raise CheckpointError(f"'{path}' is a folder without {MODEL}: {advice}")
    if not is_file(found):
        raise CheckpointError(
            f"'{path}' does not exist: name a run directory, a .safetensors file or hf://owner/name"
        )
    return found


def read_genkit(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON object under the key `genkit` of a file, and its tensors' entries."""
    metadata, tensors = read_header(path)
    if "genkit" not in metadata:
        raise CheckpointError(
            f"'{path}' is a safetensors file that genkit did not write: it does not describe the "
            "model of its weights"
        )
    try:
        info = json.loads(metadata["genkit"])
        schema = info["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"'{path}' is damaged: its genkit metadata cannot be read") from None
    if _deeper(info, _NESTED):
        raise CheckpointError(f"'{path}' is damaged: its genkit metadata is nested too deeply")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CheckpointError(
            f"'{path}' has schema {schema!r}; this genkit reads up to {SCHEMA}: use a newer genkit"
        )
    return info, tensors


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Like `read_genkit`, for a file with a tokenizer; checks the type of every entry."""
    info, tensors = read_genkit(path)
    if "tokens" in info:
        raise CheckpointError(f"'{path}' holds indices, not a tokenizer")
    if "prior" in info:
        raise HoldsPrior(
            f"'{path}' holds a prior, not a tokenizer; the tokenizer of its run is "
            f"'{path.with_name(TOKENIZER)}'"
        )
    if not isinstance(info.get("components"), dict):
        raise CheckpointError(f"'{path}' holds no tokenizer: its metadata lists no components")
    levels = info.get("levels")
    channels = info.setdefault("channels", RGB)
    sound = (
        _is_sound(info)
        and type(channels) is int
        and channels > 0
        and isinstance(levels, list)
        and levels
        and all(isinstance(level, dict) for level in levels)
        and all(
            type(level.get(key, 1 if key == "codebooks" else None)) is int and level.get(key, 1) > 0
            for level in levels
            for key in ("stride", "channels", "codebook_size", "codebooks")
        )
    )
    if not sound:
        raise CheckpointError(f"'{path}' is damaged: its metadata does not describe a tokenizer")
    for field in _KINDS:
        if not isinstance(info["components"].get(field), dict):
            raise CheckpointError(f"'{path}' is damaged: its metadata names no {field}")
    for field, entry in info["components"].items():
        _check_part(entry, field, path)
    return info, tensors


def read_prior(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Like `read_genkit`, for a file with a prior; checks the type of every entry."""
    info, tensors = read_genkit(path)
    table = info.get("prior")
    if not isinstance(table, dict):
        what = "indices" if "tokens" in info else "a tokenizer"
        raise CheckpointError(
            f"'{path}' holds {what}, not a prior: train one with genkit train-prior"
        )
    levels, size = table.get("levels"), table.get("size")
    counts = [table.get(key) for key in ("length", "channels")]
    sound = (
        _is_sound(info)
        and isinstance(info.get("components"), dict)
        and isinstance(table.get("tokenizer"), str)
        and isinstance(table.get("classes"), list)
        and all(isinstance(name, str) for name in table["classes"])
        and all(type(count) is int and count >= 0 for count in counts)
        and isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and isinstance(levels, list)
        and bool(levels)
    )
    if not sound:
        raise CheckpointError(f"'{path}' is damaged: its metadata does not describe a prior")
    _check_part(info["components"].get("prior"), "prior", path)
    return info, tensors


def _is_sound(info: Mapping[str, Any]) -> bool:
    """Whether the entries that tokenizers and priors share have their types."""
    return (
        is_text(json.dumps(info, ensure_ascii=False))
        and isinstance(info.get("versions"), dict)
        and isinstance(info.get("training"), dict)
        and isinstance(info["training"].get("data", {}), dict)
        and _are_values(info["training"].get("values"))
        and isinstance(info.get("buffers"), list)
        and all(isinstance(name, str) for name in info["buffers"])
    )


def _are_values(table: Any) -> bool:
    """Whether an entry describes the values of pixels, or is absent."""
    try:
        Values.of(table)
    except ValueError:
        return False
    return True


def prior_part(info: Mapping[str, Any], path: Path) -> Part:
    """The prior's component that a checkpoint's metadata describes."""
    try:
        return choose("prior", _undescribe(info["components"]["prior"], path))
    except MissingComponent:
        raise
    except GenkitError as error:
        raise CheckpointError(
            f"'{path}' does not fit the installed components: {error}\n{versions(info)}"
        ) from error


def holds_prior(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is a prior; `CheckpointError` for any other file."""
    return "prior" in read_genkit(model_file(path))[0]


def describe_part(part: Part) -> dict[str, Any]:
    """Name, distribution and all option values of a component."""
    return _describe(part, settings_of(part.options, local=False))


def describe_components(options: TokenizerOptions) -> dict[str, Any]:
    """Name, distribution and all option values of every component."""
    settings = settings_of(options, local=False)
    return {field: _describe(getattr(options, field), settings[field]) for field in _KINDS}


def tokenizer_options(info: Mapping[str, Any], path: Path) -> TokenizerOptions:
    """The tokenizer's options that a checkpoint's metadata describes.

    `MissingComponent` if a plugin is not installed.
    """
    settings = {field: _undescribe(info["components"][field], path) for field in _KINDS}
    try:
        options = resolve(TokenizerOptions, settings)
        # Drop local options again: the file may have declared a wrong kind for a nested part.
        return resolve(TokenizerOptions, settings_of(options, local=False))
    except MissingComponent:
        raise
    except GenkitError as error:
        raise CheckpointError(
            f"'{path}' does not fit the installed components: {error}\n{versions(info)}"
        ) from error


_KINDS = tuple(field.name for field in dataclasses.fields(TokenizerOptions))


# The deepest nesting of metadata.
_NESTED = 64


def _deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(not levels or _deeper(item, levels - 1) for item in items)


def _describe(part: Part, table: Mapping[str, Any]) -> dict[str, Any]:
    if part.component is None:
        return {"kind": part.kind, "name": NONE, "distribution": "", "options": {}}
    return {
        "kind": part.kind,
        "name": part.name,
        "distribution": str(part.component.origin),
        "options": {
            key: _describe(getattr(part.options, key), value)
            if isinstance(getattr(part.options, key), Part)
            else value
            for key, value in table.items()
            if key != "name"
        },
    }


def _check_part(entry: Any, field: str, path: Path) -> None:
    table = entry if isinstance(entry, dict) else {}
    texts = [table.get(key) for key in ("kind", "name", "distribution")]
    options = table.get("options")
    if not all(isinstance(text, str) for text in texts) or not isinstance(options, dict):
        raise CheckpointError(f"'{path}' is damaged: its metadata does not describe its {field}")
    for key, value in options.items():
        if isinstance(value, dict):
            _check_part(value, key, path)


def _undescribe(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind, name = entry["kind"], entry["name"]
    try:
        if name != NONE:
            registry().component(kind, name)
    except MissingComponent as error:
        source = str(entry.get("distribution", ""))
        raise MissingComponent(missing(path, kind, name, source, error)) from None
    table = {
        key: _undescribe(value, path) if isinstance(value, Mapping) else value
        for key, value in entry["options"].items()
    }
    # A file must not choose what is read or downloaded on this machine.
    if name != NONE:
        table = without_local(registry().component(kind, name).config, table)
    return {**table, "name": name}


def missing(path: Path, kind: str, name: str, distribution: str, error: MissingComponent) -> str:
    """The message for a missing component, with the state of the plugin that it came from."""
    if distribution == REGISTERED:
        return (
            f"'{path}' needs the {kind} '{name}', which a script or notebook defined: register it "
            f"first with genkit.register, or install a plugin that has it.\n{error}"
        )
    source = distribution or "an unknown distribution"
    broken = any(
        plugin.error and plugin.distribution == distribution.partition(" ")[0]
        for plugin in registry().plugins
    )
    advice = (
        "which is installed but broken (`genkit plugins --traceback` shows where)"
        if broken
        else "which is not among the plugins here: install it"
    )
    return f"'{path}' needs the {kind} '{name}', saved with {source!r}, {advice}.\n{error}"


def versions(info: Mapping[str, Any]) -> str:
    """The versions that a file was saved with; only the differing ones if any differ from here."""
    others = sorted(set(_others(info["components"])))
    if others:
        return "\n".join(f"It was saved with {saved}; here is {here}." for saved, here in others)
    known = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return f"It was saved with {known or 'an unknown version'}."


def _others(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in parts.values():
        if not isinstance(part, Mapping):
            continue
        saved, name = str(part.get("distribution", "")), part["name"]
        if name != NONE and name in registry().names(part["kind"]):
            here = str(registry().component(part["kind"], name).origin)
            if saved != here:
                yield saved or "an unknown distribution", here
        yield from _others(part["options"])
