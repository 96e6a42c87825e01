"""What a run needs before its first step, and agreement between its processes."""

from __future__ import annotations

import importlib.util
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from genkit.distributed import all_sum, processes
from genkit.errors import OptionError, TrainingError
from genkit.run import Run
from genkit.tokenizer import Tokenizer
from genkit.training.config import CONFIG, new_directory, newest_directory

_CHECK_EVERY = 10


def join(run: Run) -> None:
    """Meet the other processes, if there are any.

    `OptionError` for a precision or tracker that this machine has not.
    """
    if run.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise OptionError("--mixed-precision fp16 needs a GPU; on a CPU bf16 does the same job")
    if run.mixed_precision == "fp16" and run.r1_weight:
        raise OptionError("--r1-weight needs --mixed-precision bf16 or no: its gradients vanish")
    if run.tracker != "none" and importlib.util.find_spec(run.tracker) is None:
        extra = f": pip install 'genkit-vq[{run.tracker}]'" if run.tracker == "tensorboard" else ""
        raise OptionError(
            f"--tracker {run.tracker} needs the package {run.tracker}, "
            f"which is not installed{extra}"
        )
    # Accelerate passes the option on under the name that torch is giving up.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    PartialState(cpu=not torch.accelerator.is_available())


def make_accelerator(run: Run, directory: Path) -> Accelerator:
    """The Accelerator of a run."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.mixed_precision,
        gradient_accumulation_steps=run.accumulate,
        log_with=None if run.tracker == "none" else run.tracker,
        project_dir=str(directory / "tracker"),
        # Codebooks keep themselves identical, and batch norms are averaged when they are looked at.
        # A broadcast at every forward pass would also write to buffers that the discriminator's
        # first pass still needs for its gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def agreed_directory(out: Path | None, run: Run, resume: bool) -> Path:
    """The run directory, chosen by the first process for all: `out`, or one below `runs/`."""
    if out is None:
        out = newest_directory() if resume else new_directory(run.data.name)
    if resume and not (out / CONFIG).is_file():
        raise TrainingError(f"'{out}' holds no run to resume: it has no {CONFIG}")
    choice: list[Any] = [str(out)]
    if processes() > 1:
        broadcast_object_list(choice)
    return Path(choice[0])


def check_run(run: Run, tokenizer: Tokenizer) -> None:
    """`OptionError` if the images cannot be divided into the coarsest level's latents."""
    stride = tokenizer.levels[-1].stride
    if run.resolution % stride:
        raise OptionError(
            f"--resolution {run.resolution} is no multiple of the coarsest level's stride, {stride}"
        )


def check_same(origin: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """`TrainingError` if the data or the number of processes are not those of the resumed run."""
    if origin["fingerprint"] != before["fingerprint"]:
        raise TrainingError("the training images have changed since: start a new run on them")
    if origin["processes"] != before["processes"]:
        raise TrainingError(
            f"the run was trained by {before['processes']} processes: resume it with as many"
        )


def average_batch_norms(*modules: nn.Module) -> None:
    """Give every process the mean of all processes' batch norm statistics."""
    if processes() == 1:
        return
    norms = [
        norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)
    ]
    for buffer in {id(buffer): buffer for norm in norms for buffer in norm.buffers()}.values():
        if buffer.is_floating_point():
            all_sum(buffer).div_(processes())


class Interrupts:
    """Turns Ctrl-C and SIGTERM into a question that the loop asks.

    A second one interrupts at once.
    """

    def __enter__(self) -> Self:
        self._seen = False
        self._before = {
            name: signal.signal(name, self._handle) for name in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True

    def agreed(self, step: int, device: torch.device) -> bool:
        """Whether to stop before this step.

        Several processes ask each other only now and then, and agree.
        """
        if processes() == 1:
            return self._seen
        if step % _CHECK_EVERY:
            return False
        return bool(all_sum(torch.tensor(float(self._seen), device=device)) > 0)
