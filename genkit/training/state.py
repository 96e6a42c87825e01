"""The state that a resumed run goes on from.

It is safetensors and JSON, written to a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genkit.errors import TrainingError
from genkit.files import flush, readable_as_usual
from genkit.metadata import read_header

_TENSORS, _PLAIN = "tensors.safetensors", "state.json"
# As `sha256sum --check` reads it.
_SUMS = "SHA256SUMS"


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, also the buffers that the model file leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own buffers, each once.

    Of a list of modules that was made before, it takes a tenth of the time of `Module.buffers`,
    which looks for the modules in one another first.
    """
    found = {id(each): each for module in modules for each in module._buffers.values()}
    return [each for each in found.values() if each is not None]


def load_module_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `module_state` gave; `TrainingError` if the module has changed since."""
    tensors = module_state(module)
    shapes, saved = ({name: x.shape for name, x in each.items()} for each in (tensors, state))
    if shapes != saved:
        changed = sorted(name for name in {*shapes, *saved} if shapes.get(name) != saved.get(name))
        raise TrainingError(
            f"the checkpoint to resume from does not fit the model: {len(changed)} tensors differ, "
            f"first '{changed[0]}'; was it written by another version of a component?"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(state[name])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back an optimizer's state, its moments in the memory layout of their parameters.

    Fused optimizers walk through both in memory order, and a file keeps no order but the plain one.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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
        sums = [f"{_digest(temporary / name)}  {name}\n" for name in (_PLAIN, _TENSORS)]
        (temporary / _SUMS).write_text("".join(sums), encoding="utf-8")
        for file in list(temporary.iterdir()):
            readable_as_usual(file)
            flush(file)
        # Only a damaged one can be there: a run never comes back to a step that it has saved.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(folder)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to '{folder}': {error}; "
            "the one before it is intact"
        ) from error


def load_state(folder: Path) -> tuple[int, dict[str, Any]]:
    """The newest step whose state can be read, and that state; `TrainingError` if there is none.

    Under `passed_over` the state says which newer ones cannot be read, and why.
    """
    problems: list[str] = []
    for candidate in reversed(_steps(folder)):
        try:
            sums = (candidate / _SUMS).read_text(encoding="utf-8").splitlines()
            for name in (_PLAIN, _TENSORS):
                if f"{_digest(candidate / name)}  {name}" not in sums:
                    raise TrainingError(f"{name} is damaged, its bytes are not those written")
            read_header(candidate / _TENSORS)
            tensors = load_file(candidate / _TENSORS)
            state = _unflatten(json.loads((candidate / _PLAIN).read_text("utf-8")), tensors)
            return int(candidate.name.removeprefix("step-")), {**state, "passed_over": problems}
        # Whatever is wrong with the newest, the one before it may be whole.
        except Exception as error:
            problems.append(f"{candidate.name}: {error}")
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise TrainingError(f"there is no usable checkpoint in '{folder}' to resume from{detail}")


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
