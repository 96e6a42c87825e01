"""Making a step that failed fail again, and seeing where it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genkit.distributed import processes
from genkit.errors import TrainingError
from genkit.run.directory import RunDirectory
from genkit.run.options import TrainingOptions
from genkit.run.state import load_state
from genkit.training.modules import module_state
from genkit.training.numerics import numerics
from genkit.training.processes import join, make_accelerator
from genkit.training.seeds import seed
from genkit.training.session import each_tensor
from genkit.training.task import Build
from genkit.training.trainer import Trainer, not_finite


def failed_step(out: Path) -> tuple[int, dict[str, Any]]:
    """The step at which a run gave up, and its saved state; `TrainingError` if there is none."""
    failure = RunDirectory(out).failure
    if not failure.is_dir():
        raise TrainingError(f"the run in '{out}' keeps no failed step: there is nothing to replay")
    return load_state(failure)


def replay(
    task: Build, run: TrainingOptions, out: Path, step: int, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Take the `failed_step` of the run in `out` once more, from its state on its batches.

    Returns what is not finite, `then` and `now`, and where: names of `weights` and other state
    before the step, of `modules` in the order of their outputs, and of parameters by their
    `gradients`.
    """
    join(run)
    if (wanted := state["origin"]["processes"]) != processes():
        raise TrainingError(
            f"the run was trained by {wanted} processes, and these are {processes()}: "
            "genkit replay starts as many by itself"
        )
    # Hooks do not see inside compiled nets, and would see recomputed blocks twice.
    run = dataclasses.replace(run, recompute=False, compile=False)
    accelerator = make_accelerator(run, out)
    seed(run.seed)
    trainer = Trainer(run, accelerator, task(run, accelerator))
    trainer.load(state)
    before = {
        f"{name}.{key}": value
        for name, module in trainer.modules.items()
        for key, value in module_state(module).items()
    }
    found: dict[str, Any] = {"weights": not_finite(before), "modules": [], "gradients": []}
    for learner in trainer.task.learners:
        _watch(learner.module, learner.name, found)
    trainer.learner.module.train()
    process = accelerator.process_index
    batches = [each_tensor(batch, lambda x: x[process]) for batch in state["batches"]]
    with numerics(run):
        done = trainer.step(batches, step)
    return {
        "step": step,
        "then": state["broken"],
        "now": done.broken,
        "failed": not (done.taken and done.others_taken),
        **found,
    }


def _watch(root: nn.Module, prefix: str, found: dict[str, Any]) -> None:
    """Have every module and parameter below `root` tell when what comes of it is not finite."""

    def output(name: str) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            values = [result] if isinstance(result, Tensor) else result
            tensors = [each for each in values or [] if isinstance(each, Tensor)]
            if name not in found["modules"] and not all(bool(t.isfinite().all()) for t in tensors):
                found["modules"].append(name)

        return hook

    def gradient(name: str) -> Any:
        def hook(value: Tensor) -> None:
            if name not in found["gradients"] and not bool(value.isfinite().all()):
                found["gradients"].append(name)

        return hook

    for name, module in root.named_modules(prefix=prefix):
        module.register_forward_hook(output(name))
    for name, parameter in root.named_parameters(prefix=prefix):
        if parameter.requires_grad:
            parameter.register_hook(gradient(name))
