"""A checkpoint's components, sizes and training facts, read from its header alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.checkpoint.header import read_header
from genkit.checkpoint.metadata import model_file, read_model
from genkit.errors import CheckpointError


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
            key: info.get(key)
            for key in ("schema", "versions", "components", "channels", "levels", "training")
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


def codebook_text(level: Mapping[str, Any]) -> str:
    """The size of a level's codebook, behind the number of them if there are several."""
    count = level.get("codebooks", 1)
    return f"{count} x {level['codebook_size']}" if count > 1 else str(level["codebook_size"])
