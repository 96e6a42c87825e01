"""A run under way: its task, its step, its files, and those who watch it."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

import torch
from torch import Tensor

import genkit
from genkit.distributed import failing_together, gather_rows, processes, wait_for_all
from genkit.errors import DataError, FailedTogether, GenkitError, TrainingError
from genkit.run.directory import RunDirectory
from genkit.run.options import TrainingOptions
from genkit.run.state import save_state
from genkit.settings import settings_of
from genkit.training.interrupts import Interrupts
from genkit.training.meter import Meter
from genkit.training.modules import module_state
from genkit.training.processes import (
    agreed_directory,
    check_agreed,
    idle_devices,
    join,
    make_accelerator,
)
from genkit.training.seeds import seed
from genkit.training.task import Build, Summary
from genkit.training.trackers import Trackers, tracked
from genkit.training.trainer import Trainer, not_finite

_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Shows how training proceeds; only the first process has one."""

    def begin(
        self,
        run: TrainingOptions,
        directory: Path,
        step: int,
        summary: Summary,
        facts: Mapping[str, Any],
    ) -> None:
        """Training starts at `step`."""

    def prepare(self, what: str, done: int, total: int) -> None:
        """Work before the first step proceeds."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def row(self, row: Mapping[str, Any], losses: Sequence[str]) -> None:
        """A row of metrics was written; `losses` names its losses."""

    def end(self, directory: Path, step: int, done: bool) -> None:
        """Training has stopped; `done` unless it was interrupted."""


class Session:
    """A run from its first check to its last checkpoint.

    Entering it claims the run directory and starts the display; everything that could refuse the
    run has happened by then.
    """

    def __init__(
        self, build: Build, run: TrainingOptions, out: Path | None, reporter: Reporter, resume: bool
    ) -> None:
        join(run)
        self.run, self.reporter, self.resume = run, reporter, resume
        self.directory = RunDirectory(agreed_directory(out, run, resume))
        self.changed = self.directory.changed(run) if resume else []
        self.accelerator = make_accelerator(run, self.directory.path)
        self.first, self.device = self.accelerator.is_main_process, self.accelerator.device
        # Validate the run before doing any expensive work.
        self.step, state = self.directory.newest() if resume else (0, {})
        if not resume:
            self.directory.check_free()
        elif self.step > run.steps or (self.step == run.steps and run.steps):
            raise TrainingError(
                f"'{self.directory.path}' is at step {self.step} already: "
                "give a larger --steps to continue"
            )
        check_agreed(options=str(settings_of(run, local=False)), step=str(self.step))
        seed(run.seed)
        self.task = build(run.continued() if state else run, self.accelerator)
        check_agreed(data=self.task.fingerprint)
        self.trainer = Trainer(run, self.accelerator, self.task)
        self.model = self.trainer.learner.module
        self.meter = Meter(self.task.summary.unit, self.device)
        self.trackers = Trackers({})
        self.origin = _origin(self.task.fingerprint, self.device)
        self.skipped, self.saved_at, self.rehearsed = 0, -1, False
        self.unreadable = self.task.problems()
        self.passed_over = state.get("passed_over", [])
        if state:
            self.changed += check_same(self.origin, state["origin"])
            self._load(state)
            self.saved_at = self.step

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        with self._stack as stack:
            if self.first:
                self._begin(stack)
                resumed_at = self.step if self.resume else None
                self.trackers = stack.enter_context(
                    tracked(self.run, self.directory.path, resumed_at)
                )
            self.task.prepare(self.directory.path, self.reporter.prepare if self.first else _silent)
            self.stream = self.task.batches(self.step)
            self.model.train()
            self.meter.start()
            self.interrupts = stack.enter_context(Interrupts())
            # Everything went well: what was entered stays until the end.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if self.first and error is None:
            done = self.step == self.run.steps
            if done and self.step and self.run.report:
                self._report()
            self.reporter.end(self.directory.path, self.step, done)

    def _report(self) -> None:
        """Write the page of this run; the run is complete without it."""
        from genkit.reporting.page import report  # Drawing takes a second to import.

        try:
            report(self.directory.path, device=str(self.device))
        except (GenkitError, RuntimeError, OSError) as error:
            _log.warning("there is no report: %s", error)

    def _begin(self, stack: ExitStack) -> None:
        """Claim the run directory, write its first files and start the display."""
        stack.enter_context(self.directory.claimed())
        if not self.resume:
            self.directory.check_free()
        self.directory.begin(settings_of(self.run), self.step)
        self.directory.name_unreadable(self.unreadable)
        facts = {
            "unreadable": self.unreadable,
            "passed_over": self.passed_over,
            "changed": self.changed,
            "resumed": self.resume,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "device": str(self.device),
            "processes": processes(),
            "idle": idle_devices(self.run, self.device),
        }
        self.reporter.begin(self.run, self.directory.path, self.step, self.task.summary, facts)

    def interrupted(self) -> bool:
        """Whether to stop before this step, on which all processes agree."""
        return self.interrupts.agreed(self.step, self.device)

    def due(self, every: int) -> bool:
        """Whether something that happens `every` so many steps happens now."""
        return self.step % every == 0

    def take(self) -> None:
        """Take the next step; `TrainingError` if too many in a row had to be skipped."""
        with self._saved_on(), self.meter.waiting():
            batches, problems = zip(*islice(self.stream, self.run.accumulate), strict=True)
        for each in problems:
            self.unreadable |= each
        if not self.rehearsed:
            self.rehearsed = True
            with self.meter.paused():
                self.trainer.rehearse(batches[0], self.step)
            _log.debug("the step that needs most memory was tried")
        done = self.trainer.step(batches, self.step)
        self.skipped = 0 if done.taken and done.others_taken else self.skipped + 1
        if self.skipped:
            self.meter.skip()
        if self.skipped >= self.run.max_skipped:
            self._give_up(batches, done.broken)
        if done.taken:
            for passed, figures in zip(done.passes, done.figures, strict=True):
                self.meter.add(figures, done.losses, passed.count)
        self.task.count(done.passes, done.taken)
        self.lr = done.lr
        self.step += 1

    def log(self, validating: bool) -> None:
        """Write a row of metrics, with figures of held-out data if it is time to validate."""
        row = {"step": self.step, "lr": self.lr, **self.meter.read(), **self.task.row(self.step)}
        losses = self.meter.losses
        with self.meter.paused():
            if validating:
                with self._saved_on(DataError, FailedTogether), self.trainer.learner.whole():
                    row |= self._validate()
            self.trackers.log(row, self.step)
            if self.first:
                self.directory.append(row)
                self.directory.name_unreadable(self.unreadable)
                self.reporter.row(row, losses)

    def _validate(self) -> dict[str, Any]:
        _log.debug("validation at step %d", self.step)
        found = self.task.validate(self.step)
        with failing_together():
            if self.first:
                for kind, picture in found.draw().items():
                    self.directory.picture(kind, self.step, picture)
                    self.trackers.picture(kind, picture, self.step)
        for name, values in found.distributions.items():
            self.trackers.histogram(name, values, self.step)
        self.unreadable |= self.task.problems()
        self.model.train()
        return found.entries

    def advance(self) -> None:
        """Show that the step is done."""
        if self.first:
            self.reporter.advance(self.step)

    def checkpoint(self) -> None:
        """Save the model and what a resumed run needs."""
        with self.meter.paused(), self.trainer.learner.whole():
            self.saved_at = self.step
            state = self._state()
            final = self.trainer.learner.final
            # Never overwrite a good model with one that contains NaN or infinity.
            if wrong := not_finite({**module_state(self.model), **module_state(final)}):
                if self.step < self.run.steps:  # The coming steps will be skipped, and say more.
                    return
                raise TrainingError(
                    f"the weights became infinite or NaN, first {wrong[0]}: try a lower --lr; "
                    "what was saved before is intact"
                )
            if not self.first:
                return
            self.directory.check_there()
            self.task.save(self.directory.model, self.step)
            save_state(self.directory.checkpoints, self.step, state, self.run.keep)

    def end(self) -> int:
        """Save what is not saved yet; 0 at the last step, else the signal that interrupted it."""
        if self.saved_at != self.step:
            self.checkpoint()
        # Exit together: the launcher blames whichever process exits first.
        wait_for_all(self.device)
        self.accelerator.end_training()
        if self.step == self.run.steps:
            return 0
        # Another process may have received the signal.
        return self.interrupts.signal or signal.SIGTERM

    def _give_up(self, batches: Sequence[Any], broken: Sequence[str]) -> NoReturn:
        """Keep what `genkit replay` needs to make the failing step fail again, and stop."""
        gathered = [
            each_tensor(batch, lambda x: gather_rows(x.to(self.device)[None])) for batch in batches
        ]
        state = {**self._state(), "batches": gathered, "broken": list(broken)}
        if self.first:
            self.directory.check_there()
            save_state(self.directory.failure, self.step, state, keep=1)
        # Exit together: the launcher blames whichever process exits first.
        wait_for_all(self.device)
        what = ", ".join(broken) or "the loss or the gradient"
        raise TrainingError(
            f"{self.skipped} steps in a row were skipped, the last is step {self.step}: {what} "
            "became infinite or NaN. Try a lower --lr, --clip 1, a longer --warmup, or "
            "--mixed-precision no. To see where it comes from: "
            f"genkit replay {shlex.quote(str(self.directory.path))}"
        )

    @contextmanager
    def _saved_on(self, *together: type[Exception]) -> Iterator[None]:
        """Save first if something fails between two steps.

        With several processes only errors that strike `together` allow it.
        """
        try:
            yield
        except Exception as error:
            alike = processes() == 1 or isinstance(error, together)
            if alike and self.step > max(0, self.saved_at) and not self.skipped:
                self.checkpoint()
            raise

    def _state(self) -> dict[str, Any]:
        """The whole state of the run, which all processes put together."""
        return {
            "origin": self.origin,
            **self.trainer.state(),
            "meter": self.meter.state(),
            "skipped": self.skipped,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.trainer.load(state)
        self.meter.load(state["meter"], self.accelerator.process_index)
        self.skipped = state["skipped"]


def _silent(*_: object) -> None:
    """Show nothing."""


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with each of its tensors changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: each_tensor(value, change) for key, value in batch.items()}
    return type(batch)(each_tensor(value, change) for value in batch)


def check_same(origin: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Which versions have changed since the run was begun, in words.

    `TrainingError` if the data or the number of processes differ from the resumed run's.
    """
    if origin["fingerprint"] != before["fingerprint"]:
        raise TrainingError("the training data have changed since: start a new run on them")
    if origin["processes"] != before["processes"]:
        count = before["processes"]
        each = "process" if count == 1 else "processes"
        raise TrainingError(f"the run was trained by {count} {each}: resume it with as many")
    return [
        f"{name} is {now}, was {before['versions'].get(name, 'absent')}"
        for name, now in origin["versions"].items()
        if before["versions"].get(name) != now
    ]


def _origin(fingerprint: str, device: torch.device) -> dict[str, Any]:
    """The identity of a run to resume, and the versions that could change its last digits."""
    versions = {"genkit": genkit.__version__, "torch": str(torch.__version__)}
    return {
        "fingerprint": fingerprint,
        "processes": processes(),
        "versions": {**versions, "device": device.type, "threads": str(torch.get_num_threads())},
    }
