"""The state that a resumed run continues from.

It is safetensors and JSON, written to a temporary name and renamed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genkit.checkpoint.header import read_header
from genkit.errors import TrainingError
from genkit.files import flush, readable_as_usual, sha256

_TENSORS, _PLAIN = "tensors.safetensors", "state.json"
# In the format of `sha256sum --check`.
_log = logging.getLogger(__name__)
_SUMS = "SHA256SUMS"


def save_state(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write the state of a step to `folder/step-…`, flushed and renamed.

    Only the newest `keep` steps stay.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    tensors: dict[str, Tensor] = {}
    plain = _flatten(state, "", tensors)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / _TENSORS)
        (temporary / _PLAIN).write_text(json.dumps(plain), encoding="utf-8")
        sums = [f"{sha256(temporary / name)}  {name}\n" for name in (_PLAIN, _TENSORS)]
        (temporary / _SUMS).write_text("".join(sums), encoding="utf-8")
        for file in list(temporary.iterdir()):
            readable_as_usual(file)
            flush(file)
        # A run never returns to a step that it has saved, so only a damaged one can exist.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(folder)
        _log.debug("wrote the checkpoint '%s'", final)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to '{folder}': {error}; "
            "the one before it is intact"
        ) from error


def load_state(folder: Path) -> tuple[int, dict[str, Any]]:
    """The newest step whose state can be read, and that state; else a `TrainingError`.

    Under `passed_over` the state says which newer ones cannot be read, and why.
    """
    problems: list[str] = []
    for candidate in reversed(_steps(folder)):
        try:
            sums = (candidate / _SUMS).read_text(encoding="utf-8").splitlines()
            for name in (_PLAIN, _TENSORS):
                if f"{sha256(candidate / name)}  {name}" not in sums:
                    raise TrainingError(f"{name} is damaged: its checksum differs")
            read_header(candidate / _TENSORS)
            tensors = load_file(candidate / _TENSORS)
            state = _unflatten(json.loads((candidate / _PLAIN).read_text("utf-8")), tensors)
            return int(candidate.name.removeprefix("step-")), {**state, "passed_over": problems}
        # The newest may be damaged in any way; the one before it may be whole.
        except Exception as error:
            problems.append(f"{candidate.name}: {error}")
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise TrainingError(f"there is no usable checkpoint in '{folder}' to resume from{detail}")


def _steps(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()
    )


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with its tensors moved to `tensors` under their paths."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {
            "items": [
                [key, _flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if isinstance(value, Mapping):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "tuple" in value:
            return tuple(_unflatten(value["tuple"], tensors))
        if "dtype" in value:
            return getattr(torch, value["dtype"])
        return {key: _unflatten(item, tensors) for key, item in value["items"]}
    return value
