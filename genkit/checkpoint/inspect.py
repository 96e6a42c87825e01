"""A checkpoint's components, sizes and training facts, read from its header alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.checkpoint.metadata import holds_prior, model_file, read_model, read_prior


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's components, levels, parameter counts and training facts, read without torch.

    `path` is a run directory, a `.safetensors` file or a model on the hub, `hf://owner/name`;
    `CheckpointError` if it is something else or damaged. If it was trained against a discriminator,
    that one's parameters are given too. A prior has an entry `prior` about its sequence.
    """
    file = model_file(path)
    info, tensors = (read_prior if holds_prior(file) else read_model)(file)
    return _described(file, info, tensors)


def inspect_tokenizer(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Like `inspect`; `CheckpointError` for a prior."""
    file = model_file(path)
    return _described(file, *read_model(file))


def _described(file: Path, info: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    buffers = set(info["buffers"])
    counted = _counted(tensors)
    modules: dict[str, int] = {}
    for name, count in counted.items():
        module = ".".join(name.split(".")[:2])
        modules[module] = modules.get(module, 0) + count
    prior = {"prior": info["prior"]} if "prior" in info else {}
    keys = ("schema", "versions", "components", "channels", "levels", "training")
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        **{key: info[key] for key in keys if key in info},
        **prior,
        "parameters": {
            "total": sum(counted.values()),
            "trainable": sum(count for name, count in counted.items() if name not in buffers),
            "modules": modules,
            **_discriminator(info["training"]),
        },
    }


def _counted(tensors: Mapping[str, Any]) -> dict[str, int]:
    """The number of values of every tensor of floats."""
    return {
        name: math.prod(entry["shape"])
        for name, entry in tensors.items()
        if re.match(r"B?F\d", entry["dtype"])
    }


def _discriminator(training: Mapping[str, Any]) -> dict[str, int]:
    count = training.get("discriminator")
    return {"discriminator": count} if isinstance(count, int) else {}


def codebook_text(level: Mapping[str, Any]) -> str:
    """The size of a level's codebook, behind the number of them if there are several."""
    count = level.get("codebooks", 1)
    return f"{count} x {level['codebook_size']}" if count > 1 else str(level["codebook_size"])
