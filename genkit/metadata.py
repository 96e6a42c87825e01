"""What a checkpoint says of itself, read from its header alone.

This takes no torch and no pickle, and nothing that is named in the header is executed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genkit.diagnosis import missing, no_checkpoint, versions
from genkit.errors import CheckpointError, GenkitError, MissingComponent
from genkit.files import expanded, is_file, is_folder
from genkit.hub import fetch, is_address
from genkit.options import NONE, Part, resolve, settings_of, without_local
from genkit.registry import registry
from genkit.run import TokenizerOptions
from genkit.training.config import CONFIG

SCHEMA = 1
MODEL = "model.safetensors"
HEADER_LIMIT = 100_000_000


def model_file(path: str | os.PathLike[str]) -> Path:
    """The model file of a checkpoint.

    That is `path` itself, the one in it if it is a run directory, or the local copy of the one that
    it names on the hub.
    """
    if is_address(path):
        return fetch(str(path), MODEL)
    found = expanded(path)
    if is_folder(found):
        found /= MODEL
        if not is_file(found):
            started = (found.parent / CONFIG).is_file()
            advice = (
                "its run has saved none yet"
                if started
                else "name a run directory or a .safetensors file"
            )
            raise CheckpointError(f"'{path}' is a folder without {MODEL}: {advice}")
    if not is_file(found):
        raise CheckpointError(
            f"there is no checkpoint '{path}': name a run directory, a .safetensors file "
            "or hf://owner/name"
        )
    return found


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata and the tensors' entries of a safetensors file.

    `CheckpointError` if it is damaged or something else.
    """
    if not is_file(path):
        raise CheckpointError(f"there is no file '{path}'")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
                raise CheckpointError(no_checkpoint(path))
            header = json.loads(file.read(length).decode())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is no safetensors file: its header is not JSON") from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not (
        all(isinstance(value, str) for value in metadata.values())
        and all(_is_entry(entry) for entry in header.values())
        and _is_text("".join(header))
    ):
        raise CheckpointError(
            f"'{path}' is no safetensors file: its header has not the form of one"
        )
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    announced = 8 + length + end
    if size != announced:
        raise CheckpointError(
            f"'{path}' is damaged: it has {size} bytes where its header announces {announced}; "
            "copy or save it again"
        )
    if not _fills(header.values()):
        raise CheckpointError(
            f"'{path}' is damaged: its header gives the tensors other places than their shapes and "
            "types take; copy or save it again"
        )
    return metadata, header


def read_genkit(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON object under the key `genkit`, and the tensors' entries, of a file of genkit's."""
    metadata, tensors = read_header(path)
    if "genkit" not in metadata:
        raise CheckpointError(
            f"'{path}' is a safetensors file, but not one that genkit wrote: it does not say what "
            "its weights belong to"
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
    """As `read_genkit`, of a file that holds a tokenizer, every entry known to be of its type."""
    info, tensors = read_genkit(path)
    if "tokens" in info:
        raise CheckpointError(f"'{path}' holds indices; a tokenizer is asked for")
    if not isinstance(info.get("components"), dict):
        raise CheckpointError(f"'{path}' holds no tokenizer: its metadata lists no components")
    levels = info.get("levels")
    sound = (
        _is_text(json.dumps(info, ensure_ascii=False))
        and isinstance(info.get("versions"), dict)
        and isinstance(info.get("training"), dict)
        and isinstance(info["training"].get("data", {}), dict)
        and isinstance(info.get("buffers"), list)
        and all(isinstance(name, str) for name in info["buffers"])
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
        raise CheckpointError(
            f"'{path}' is damaged: its metadata has not the form of a tokenizer's"
        )
    for field in _KINDS:
        if not isinstance(info["components"].get(field), dict):
            raise CheckpointError(f"'{path}' is damaged: its metadata names no {field}")
    for field, entry in info["components"].items():
        _check_part(entry, field, path)
    return info, tensors


def describe_components(options: TokenizerOptions) -> dict[str, Any]:
    """Per component its name, the distribution it comes from, and all its option values."""
    settings = settings_of(options, local=False)
    return {field: _describe(getattr(options, field), settings[field]) for field in _KINDS}


def tokenizer_options(info: Mapping[str, Any], path: Path) -> TokenizerOptions:
    """The tokenizer's options that a checkpoint's metadata describes.

    `MissingComponent` if a plugin is not installed.
    """
    settings = {field: _undescribe(info["components"][field], path) for field in _KINDS}
    try:
        options: TokenizerOptions = resolve(TokenizerOptions, settings)
        # Whatever kind of component the file gives out its options for.
        options = resolve(TokenizerOptions, settings_of(options, local=False))
    except MissingComponent:
        raise
    except GenkitError as error:
        raise CheckpointError(
            f"'{path}' does not fit the installed components: {error}\n{versions(info)}"
        ) from error
    return options


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's components, levels, parameter counts and training facts, read without torch.

    `path` is a run directory, a `.safetensors` file or a model on the hub, `hf://owner/name`;
    `CheckpointError` if it is none or is damaged. Of a run directory with a discriminator, that
    one's parameters are given too.
    """
    file = model_file(path)
    info, tensors = read_model(file)
    buffers = set(info["buffers"])
    counted = _counted(tensors)
    modules: dict[str, int] = {}
    for name, count in counted.items():
        module = ".".join(name.split(".")[:2])
        modules[module] = modules.get(module, 0) + count
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        **{
            key: info.get(key) for key in ("schema", "versions", "components", "levels", "training")
        },
        "parameters": {
            "total": sum(counted.values()),
            "trainable": sum(count for name, count in counted.items() if name not in buffers),
            "modules": modules,
            **_discriminator(file.parent if Path(path).is_dir() else None),
        },
    }


def _counted(tensors: Mapping[str, Any]) -> dict[str, int]:
    """The number of values of every tensor of floats."""
    return {
        name: math.prod(entry["shape"])
        for name, entry in tensors.items()
        if re.match(r"B?F\d", entry["dtype"])
    }


def _discriminator(run: Path | None) -> dict[str, int]:
    """The count of the discriminator in the newest checkpoint to resume from, if there is one."""
    states = sorted(run.glob("checkpoints/step-*/tensors.safetensors")) if run else []
    if not states:
        return {}
    try:
        counted = _counted(read_header(states[-1])[1])
    except CheckpointError:  # The model is whole all the same; resuming will tell.
        return {}
    mine = [count for name, count in counted.items() if name.startswith(_DISCRIMINATOR)]
    return {"discriminator": sum(mine)} if mine else {}


_DISCRIMINATOR = "/modules/discriminator/"
_KINDS = ("encoder", "quantizer", "fusion", "decoder")


# The bytes of a number of each type that is read.
_BYTES = {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "C64": 8} | {
    f"{kind}{8 * count}": count
    for kind, counts in {"F": (2, 4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}.items()
    for count in counts
}
# How deep metadata may be nested.
_NESTED = 64


def _fills(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether tensors lie one behind the other, each as long as its shape and type are."""
    position = 0
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        size = 0 if 0 in entry["shape"] else _BYTES.get(entry["dtype"], 0)
        for side in entry["shape"]:
            if size > end:  # Before the product of nonsense takes long.
                return False
            size *= side
        if entry["dtype"] not in _BYTES or begin != position or end - begin != size:
            return False
        position = end
    return True


def _deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(not levels or _deeper(item, levels - 1) for item in items)


def _is_text(text: str) -> bool:
    """Whether `text` can be written anywhere: JSON also has halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_entry(entry: Any) -> bool:
    def numbers(value: Any) -> bool:
        return isinstance(value, list) and all(
            type(number) is int and number >= 0 for number in value
        )

    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and numbers(entry.get("shape"))
        and numbers(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _describe(part: Part, table: Mapping[str, Any]) -> dict[str, Any]:
    if part.name not in registry().names(part.kind):
        return {"kind": part.kind, "name": NONE, "distribution": "", "options": {}}
    owner = registry().owner(part.kind, part.name)
    config = registry().component(part.kind, part.name).config
    options = part.options if part.options is not None else config()
    return {
        "kind": part.kind,
        "name": part.name,
        "distribution": f"{owner.distribution} {owner.version}".strip(),
        "options": {
            key: _describe(getattr(options, key), value)
            if isinstance(getattr(options, key), Part)
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
        raise CheckpointError(
            f"'{path}' is damaged: its metadata describes its {field} in no known form"
        )
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
    # No file has a say in what is read or fetched here, whoever made it.
    if name != NONE:
        table = without_local(registry().component(kind, name).config, table)
    return {**table, "name": name}
