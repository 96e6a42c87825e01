"""What a run needs before its first step, and agreement between its processes."""

from __future__ import annotations

import importlib.util
import signal
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
)
from torch import nn

import genkit
from genkit.data import batches, none_readable
from genkit.distributed import all_sum, processes
from genkit.errors import GenkitError, OptionError, TrainingError
from genkit.interfaces import Dataset
from genkit.options import Part
from genkit.registry import registry
from genkit.run import Run
from genkit.testing.quantizer import check_counting, check_result
from genkit.tokenizer import Tokenizer
from genkit.training.config import CONFIG, new_directory, newest_directory
from genkit.training.launcher import check_distributed, check_launcher, stop_signals

_CHECK_EVERY = 10


def join(run: Run) -> None:
    """Meet the other processes, if there are any.

    `OptionError` for a precision or tracker that this machine has not.
    """
    if run.mixed_precision == "fp16" and run.r1_weight:
        raise OptionError("--r1-weight needs --mixed-precision bf16 or no: fp16 loses gradients")
    if run.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise OptionError("--mixed-precision fp16 needs a GPU; on a CPU bf16 does the same job")
    if run.tracker != "none" and importlib.util.find_spec(run.tracker) is None:
        extra = f": pip install 'genkit-vq[{run.tracker}]'" if run.tracker == "tensorboard" else ""
        raise OptionError(
            f"--tracker {run.tracker} needs the package {run.tracker}, "
            f"which is not installed{extra}"
        )
    # Accelerate passes the option on under the name that torch is giving up.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    check_launcher(run, torch.accelerator.device_count())
    check_distributed(PartialState(cpu=not torch.accelerator.is_available()).distributed_type)


def make_accelerator(run: Run, directory: Path) -> Accelerator:
    """The Accelerator of a run."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.mixed_precision,
        log_with=None if run.tracker == "none" else run.tracker,
        project_dir=str(directory / "tracker"),
        # Codebooks and batch norms keep themselves identical.
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


@torch.no_grad()
def check_fit(
    run: Run, tokenizer: Tokenizer, perceptual: nn.Module | None, discriminator: nn.Module | None
) -> None:
    """`OptionError` if the components do not work together, or not on images of this size.

    One blank image goes all the way, so that no run begins that its first step would end.
    """
    stride, size = tokenizer.levels[-1].stride, run.resolution
    if size % stride:
        raise OptionError(
            f"--resolution {size} is no multiple of the coarsest level's stride, {stride}"
        )
    wholes = [module for module in (tokenizer, perceptual, discriminator) if module]
    modes = {module: module.training for whole in wholes for module in whole.modules()}
    for whole in wholes:
        whole.eval()
    images = torch.zeros(1, 3, size, size)
    with _blamed(run.encoder):
        latents = tokenizer.encoder(images)
        sides = [size // level.stride for level in tokenizer.levels]
        wanted = [
            [1, level.channels, side, side]
            for level, side in zip(tokenizer.levels, sides, strict=True)
        ]
        _check_shapes("latents", latents, wanted)
    with (
        _blamed(run.quantizer, *([run.fusion] if len(latents) > 1 else [])),
        _checked(run.quantizer, tokenizer),
    ):
        quantized = tokenizer.quantize(latents)
    with _blamed(run.decoder):
        made = tokenizer.decoder([level.latents for level in quantized])
        _check_shapes("images", [made], [[1, 3, size, size]])
    if perceptual:
        with _blamed(run.perceptual):
            _check_shapes("losses", [perceptual(made, images)], [[]])
    if discriminator:
        with _blamed(run.discriminator):
            logits = discriminator(images)
            _check_shapes("logits", [logits], [[1, 1, *logits.shape[2:]]])
    for module, mode in modes.items():
        module.training = mode


def _check_shapes(what: str, found: list[torch.Tensor], wanted: list[list[int]]) -> None:
    shapes = [list(each.shape) for each in found]
    if shapes != wanted:
        raise ValueError(f"its {what} are {shapes} where they should be {wanted}")


@contextmanager
def _checked(part: Part, tokenizer: Tokenizer) -> Iterator[None]:
    """`OptionError` if a quantizer called inside returns what a quantizer must not return."""

    def check(quantizer: Any, given: tuple[torch.Tensor], out: Any) -> None:
        try:
            size, codebooks = int(quantizer.codebook_size), int(getattr(quantizer, "codebooks", 1))
            check_result(out, given[0], size, codebooks)
            check_counting(quantizer, out)
        except AssertionError as flaw:
            raise OptionError(f"the quantizer '{part.name}' cannot be trained: {flaw}") from flaw

    hooks = [each.register_forward_hook(check) for each in tokenizer.quantizers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _blamed(*parts: Part) -> Iterator[None]:
    """What fails inside is told as the fault of these components."""
    try:
        yield
    except GenkitError:
        raise
    except Exception as error:  # A plugin's component may raise anything.
        if "memory" in str(error):
            raise
        names = " and ".join(f"the {part.kind} '{part.name}'" for part in parts)
        does = "do" if len(parts) > 1 else "does"
        place = _place(error, parts)
        told = f"{type(error).__name__}: {error} ({place})" if place else error
        raise OptionError(
            f"{names} {does} not work with the other components and options: {told}"
        ) from error


def _place(error: Exception, parts: tuple[Part, ...]) -> str:
    """The last line of the components' own packages on the way to an error, if there is any."""
    targets = [registry().component(part.kind, part.name).target for part in parts]
    packages = {target.partition(":")[0].partition(".")[0] for target in targets}
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in packages
    ]
    return places[-1] if places else ""


def check_same(origin: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Which versions have changed since the run was begun, in words.

    `TrainingError` if the data or the number of processes are not those of the resumed run.
    """
    if origin["fingerprint"] != before["fingerprint"]:
        raise TrainingError("the training images have changed since: start a new run on them")
    if origin["processes"] != before["processes"]:
        count = before["processes"]
        each = "process" if count == 1 else "processes"
        raise TrainingError(f"the run was trained by {count} {each}: resume it with as many")
    return [
        f"{name} is {now}, was {before['versions'].get(name, 'not there')}"
        for name, now in origin["versions"].items()
        if before["versions"].get(name) != now
    ]


def check_heldout(run: Run, heldout: Dataset, process: int, device: torch.device) -> None:
    """Read the images that every validation looks at; `DataError` if none of them can be read.

    Else a run would find out at its first validation.
    """
    if getattr(heldout, "generated", False):
        return
    looked_at = batches(
        heldout, run.validation_images, run.batch_size, torch.device("cpu"), process
    )
    read = sum(len(kept) for kept, _ in looked_at)
    if not all_sum(torch.tensor(float(read), device=device)):
        raise none_readable(heldout, "held-out images")


def origin_of(dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """By what a resumed run is known to be the same one, and what could change its last digits."""
    versions = {"genkit": genkit.__version__, "torch": str(torch.__version__)}
    return {
        "fingerprint": dataset.fingerprint,
        "processes": processes(),
        "versions": {**versions, "device": device.type, "threads": str(torch.get_num_threads())},
    }


class Interrupts:
    """Turns Ctrl-C and the other signals to stop into a question that the loop asks.

    Only Ctrl-C after one of them interrupts at once: of the others several may come, such as from a
    terminal and its shell, or from a scheduler and a launcher.
    """

    def __enter__(self) -> Self:
        self._seen = False
        self._before = {
            name: signal.signal(name, self._handle) for name in (signal.SIGINT, *stop_signals())
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
        if self._seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen = True

    def agreed(self, step: int, device: torch.device) -> bool:
        """Whether to stop before this step.

        Several processes agree; where asking makes the device wait, they ask only now and then.
        """
        if processes() == 1:
            return self._seen
        if device.type != "cpu" and step % _CHECK_EVERY:
            return False
        return bool(all_sum(torch.tensor(float(self._seen), device=device)) > 0)
