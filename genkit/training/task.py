"""The contract between the training loop and whatever it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from genkit.images import Pixels
from genkit.training.learner import Learner


@dataclass(frozen=True)
class Pass:
    """A forward pass: losses whose sum is minimised, other figures to log, and the task's own data.

    `count` is the number of items in the batch; throughput is measured in items.
    """

    losses: dict[str, Tensor]
    figures: dict[str, Tensor]
    count: int
    data: Any = None


@dataclass(frozen=True)
class Validation:
    """Entries for the row of metrics, and a function that draws pictures, by folder.

    Only the first process calls `draw`, so it exchanges nothing with the others. `distributions`
    are values on the CPU whose histograms trackers show.
    """

    entries: dict[str, Any]
    draw: Callable[[], dict[str, Pixels]] = dict
    distributions: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Summary:
    """A few words on what is trained on what, for the start of a run.

    `training` and `heldout` are numbers of items, which are counted in `unit`, such as "images".
    """

    model: str
    data: str
    unit: str
    training: int
    heldout: int
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


# Takes words on what is being done, the number of items done, and the number of all.
Progress = Callable[[str, int, int], object]


class Task(Protocol):
    """Anything that a run trains. Built as `Task(run, accelerator)`, with all generators seeded.

    The first of its `learners` takes the losses; a task trains the others in `after`. A batch is a
    tensor, or a dict or tuple of tensors, on the CPU. `fingerprint` identifies the training data: a
    run is resumed on the same data alone.

    Every method but `save` runs on all processes alike.
    """

    fingerprint: str
    summary: Summary

    @property
    def learners(self) -> Sequence[Learner]:
        """The modules in training."""

    def prepare(self, directory: Path, progress: Progress) -> None:
        """Do what must be done once before the first step, such as filling a cache.

        It may keep files in the run directory. `progress` takes what it does, the number of items
        done and the number of all. An interrupted run continues here when it is resumed.
        """

    def batches(self, first: int) -> Iterator[tuple[Any, Mapping[str, str]]]:
        """Yield batches of this process from step `first` on, each with the unreadable items.

        A step takes as many batches as the run accumulates.
        """

    def losses(self, batch: Any, step: int) -> Pass:
        """Run the forward pass of the first learner's `model`."""

    def after(self, passed: Pass, step: int, last: bool) -> tuple[dict[str, Tensor], bool]:
        """Train the other learners on a batch; they move after the `last` batch of a step.

        Returns figures to log and whether all of them took their step.
        """

    def fullest(self, step: int) -> int | None:
        """A step after `step` that needs more memory than all until then, if there is one.

        A run tries it before its first step, so that it fails for lack of memory at once.
        """

    def count(self, passes: Sequence[Pass], taken: bool) -> None:
        """Take in the passes of a step; nothing of them counts if it was not `taken`."""

    def row(self, step: int) -> dict[str, Any]:
        """Entries for the row of metrics beside the means of figures, since the last row."""

    def validate(self, step: int) -> Validation:
        """Measure the first learner's `final` on held-out data."""

    def problems(self) -> dict[str, str]:
        """The items that could not be read so far in this process, each with the reason."""

    def save(self, path: Path, step: int) -> None:
        """Write the first learner's `final`, ready to use, with its training facts."""

    def state(self) -> dict[str, Any]:
        """The state for a resumed run, beside the learners'."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""


Build = Callable[[Any, Accelerator], Task]
