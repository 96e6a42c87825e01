"""Progress of commands: a bar and the latest figures in a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from genkit.checkpoint.inspect import codebook_text
from genkit.devices import launched
from genkit.evaluation.figures import labelled
from genkit.files import REPORT
from genkit.run.options import TrainingOptions
from genkit.training.meeting import LAUNCHED
from genkit_cli.messages import is_quiet
from genkit_cli.terminal import Output, left_out, typed

if TYPE_CHECKING:
    from genkit.training.task import Summary

# With a smaller share of the time spent on waiting for data, nothing is gained by a warning.
_WAITING = 0.2
_ADVERSARIAL = ("adversarial_weight", "real_score", "made_score", "score_gap")


class Progress:
    """Shows a training run; the training loop calls its methods."""

    def __init__(self) -> None:
        # Training continues if the reader of its output is gone or the disk is full.
        output: Any = Output(sys.stdout) if sys.stdout else None
        self.console = Console(file=output, highlight=False, markup=False, quiet=is_quiet())
        # Also printed with -q.
        self.results = Console(file=output, highlight=False, markup=False)
        self.bar = Bar(
            TextColumn("step"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("·"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task("train", total=None)
        self.live = (
            Live(self.bar, console=self.console, refresh_per_second=4)
            if self.console.is_terminal and not self.console.quiet
            else None
        )
        self.latest: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}
        self.alarms: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self.rows, self.slow = 0, False
        self.directory: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live and self.live.is_started:
            self.live.stop()
        if kind is KeyboardInterrupt and self.directory:
            self.results.print(
                f"Continue with: genkit {self.run.command} --resume --out {typed(self.directory)}",
                soft_wrap=True,
            )

    def load(self) -> None:
        """Say at once that the command is accepted; the first of several processes says it."""
        if LAUNCHED not in os.environ and os.environ.get("RANK", "0") == "0":
            self.console.print("Loading PyTorch and the data …")

    def begin(
        self,
        run: TrainingOptions,
        directory: Path,
        step: int,
        summary: Summary,
        facts: Mapping[str, Any],
    ) -> None:
        """Print the model, device and data, and start the display."""
        count = facts["processes"]
        where = facts["device"]
        if count > 1:
            number = count * run.batch_size * run.accumulate
            where += f", {count} processes, {number} {summary.unit} per step"
        self.console.print(
            f"{summary.model}, {facts['parameters'] / 1e6:.2f} M parameters, on {where}"
        )
        self.console.print(
            f"{summary.data}: {summary.training} {summary.unit} to train on, "
            f"{summary.heldout} held out → {directory}",
            soft_wrap=True,
        )
        if idle := facts["idle"]:
            self.console.print(_idle(idle, count), soft_wrap=True)
        if unreadable := facts["unreadable"]:
            self.console.print(
                f"{left_out(len(unreadable))}; see {directory / 'unreadable.txt'}",
                soft_wrap=True,
            )
        for note in summary.notes:
            self.console.print(note, soft_wrap=True)
        for problem in facts["passed_over"]:
            self.console.print(f"A checkpoint cannot be read, {problem}", soft_wrap=True)
        for warning in summary.warnings:
            self._warn(warning)
        for change in facts["changed"]:
            self.console.print(f"Changed since: {change}", soft_wrap=True)
        if facts["resumed"]:
            where = f"Resuming at step {step}." if step else "No checkpoint yet: starting over."
            self.console.print(where)
        self.run, self.directory, self.device = run, directory, facts["device"]
        self.bar.reset(self.task, total=run.steps, completed=step)
        self.total, self.started, self.first = run.steps, time.monotonic(), step
        self.preparing: Counting | None = None
        if self.live:
            self.live.start()

    def prepare(self, what: str, done: int, total: int) -> None:
        """Show work before the first step, whose time is not part of the steps'."""
        self.started = time.monotonic()
        if self.live:
            self.live.update(Text(f"{what} {done} of {total} images"))
            return
        if done == 0:
            self.preparing = Counting("images", self.console)
        if self.preparing:
            self.preparing(done, total)

    def advance(self, step: int) -> None:
        """Advance the bar to a step."""
        self.bar.update(self.task, completed=step)

    def row(self, row: Mapping[str, Any], losses: Sequence[str]) -> None:
        """Show the newest figures."""
        self.latest = dict(row)
        self.validation = row.get("validation", self.validation)
        if self.live:
            self.live.update(Group(self.bar, _table(self.latest, self.validation, losses)))
        else:
            self.console.print(self._line(row, losses), soft_wrap=True)
        self._check_waiting(row)
        # An alarm's message changes from row to row.
        alarms = {(each["kind"], each.get("level")): each for each in row.get("alarms", [])}
        for key, alarm in alarms.items():
            if key not in self.alarms:
                self._warn(alarm["message"])
        self.alarms = alarms

    def end(self, directory: Path, step: int, done: bool) -> None:
        """Print where the model is and the next command to type."""
        if self.live:
            self.live.stop()
        if not done:
            self.results.print(
                f"Interrupted at step {step}; everything is saved. "
                f"Resume with: genkit {self.run.command} --resume --out {typed(directory)}",
                soft_wrap=True,
            )
            return
        if figures := self.validation:
            page = directory / REPORT
            look = (
                page if self.run.report and page.is_file() else f"{directory / 'samples'}{os.sep}"
            )
            self.results.print(
                f"Held-out images: {', '.join(_figures(figures, 'codes in use by level:'))}. "
                f"Look at {look}",
                soft_wrap=True,
            )
        if collapsed := _collapsed(self.alarms.values()):
            which = "level" if len(collapsed) == 1 else "levels"
            levels = " and ".join(str(level) for level in collapsed)
            self._warn(f"{which} {levels} ended collapsed; see {directory / 'codes'}{os.sep}")
        for alarm in self.alarms.values():
            if "level" not in alarm:
                self._warn(f"{alarm['kind']} at the end; see {directory / 'metrics.jsonl'}")
        self.results.print(
            f"The model is {directory / 'model.safetensors'}. "
            f"Next: {self.run.then.format(typed(directory))}",
            soft_wrap=True,
        )

    def _check_waiting(self, row: Mapping[str, Any]) -> None:
        """Warn once if the device waits for images; in the first row their readers start."""
        self.rows += 1
        waiting = row.get("waiting", 0.0)
        if self.device == "cpu" or self.slow or self.rows == 1 or waiting < _WAITING:
            return
        self.slow = True
        self._warn(
            f"training waits for its data during {waiting:.0%} of the time: try more --workers, a "
            "larger --data.cache, or smaller image files"
        )

    def _warn(self, text: str) -> None:
        # Wrap between words in a terminal; keep one line per message elsewhere.
        self.console.print(f"Warning: {text}", style="bold red", soft_wrap=not self.live)

    def _line(self, row: Mapping[str, Any], losses: Sequence[str]) -> str:
        done = row["step"] - self.first
        left = (time.monotonic() - self.started) / max(1, done) * (self.total - row["step"])
        words = [f"step {row['step']}/{self.total}"]
        words += [f"{name} {row[name]:.4f}" for name in losses if name in row]
        if "psnr" in row:
            words.append(f"psnr {row['psnr']:.2f}")
        words += _adversarial(row)
        if levels := row.get("levels"):
            words.append("codes")
            words += [f"{level['active']}/{codebook_text(level)}" for level in levels]
        words += [*_speed(row), f"{left:.0f} s left"]
        if figures := [*labelled(row.get("validation", {}))]:
            words += ["| held-out", *figures]
        return " ".join(words)


def _idle(idle: int, count: int) -> str:
    """A sentence on idle GPUs: how to use them, and what that changes."""
    gpus = "1 more GPU is idle" if idle == 1 else f"{idle} more GPUs are idle"
    total = idle + count
    more = f"{total / count:g} times the images per step at the same --lr"
    return f"{gpus}: --processes {total} uses all, with {more}."


def _table(row: Mapping[str, Any], validation: Mapping[str, Any], losses: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_row(*(f"{name} {row[name]:.4f}" for name in losses if name in row))
    psnr = [f"PSNR {row['psnr']:.2f} dB"] if "psnr" in row else []
    table.add_row(*psnr, *_speed(row), f"lr {row['lr']:.2g}")
    if figures := _adversarial(row):
        table.add_row(*figures)
    codes = [
        f"level {index}: {level['active']} of {codebook_text(level)} codes, "
        f"perplexity {level['perplexity']:.0f}, longest unused {level['unused']} images"
        for index, level in enumerate(row.get("levels", []))
    ]
    lines = Table.grid()
    lines.add_row(table)
    collapsed = _collapsed(row.get("alarms", []))
    for index, text in enumerate(codes):
        lines.add_row(Text(text, style="bold red" if index in collapsed else ""))
    if validation:
        lines.add_row(f"held-out: {', '.join(_figures(validation, 'codes in use'))}")
    return lines


def _adversarial(row: Mapping[str, Any]) -> list[str]:
    return [f"{name} {row[name]:.3g}" for name in _ADVERSARIAL if name in row]


def _collapsed(alarms: Iterable[Mapping[str, Any]]) -> list[int]:
    return [alarm["level"] for alarm in alarms if "level" in alarm]


def _figures(validation: Mapping[str, Any], use: str) -> list[str]:
    """The figures of a validation, and behind the words of `use` the codes in use by level."""
    shares = [f"{level['usage']:.0%}" for level in validation["levels"] if "usage" in level]
    return [*labelled(validation), *([f"{use} {', '.join(shares)}"] if shares else [])]


def _speed(row: Mapping[str, Any]) -> list[str]:
    """The row's speeds, such as images per second."""
    end = "_per_second"
    return [f"{row[key]:.0f} {key.removesuffix(end)}/s" for key in row if key.endswith(end)]


def _messages_console() -> Console:
    # A launcher holds stderr back until the end.
    stream = sys.stdout if LAUNCHED in os.environ else sys.stderr
    output: Any = Output(stream) if stream else None
    return Console(file=output, highlight=False, markup=False, quiet=is_quiet())


def busy(what: str) -> Bar:
    """A spinner with the name of the current work and its seconds; in a terminal.

    For work whose length is unknown.
    """
    console = _messages_console()
    shown = console.is_terminal and not console.quiet
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    bar = Bar(*columns, console=console, transient=True, disable=not shown)
    bar.add_task(what, total=None)
    return bar


class Counting:
    """Progress of a command that works through a known number of things.

    A terminal gets a bar; elsewhere a line is printed every ten seconds. Only the first of several
    processes shows its share. An interrupted command that `resumes` says so.
    """

    def __init__(self, unit: str, console: Console | None = None, *, resumes: bool = False) -> None:
        self.resumes = resumes
        self.first = launched()[0] == 0
        self.unit, self.processes = unit, launched()[1]
        self.console = console or _messages_console()
        self.bar = Bar(
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn(unit + "{task.fields[speed]} · left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.first and self.console.is_terminal and not self.console.quiet),
        )
        self.task = self.bar.add_task(unit, total=None, speed="")
        self.began = self.told = time.monotonic()
        self.before: int | None = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        if self.first and self.resumes and kind is KeyboardInterrupt:
            self.console.print("Run the same command again to continue.")

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if self.before is None:
            self.began, self.before = now, done
        speed = (done - self.before) / max(1e-6, now - self.began)
        share = f" of {self.processes} processes" if self.processes > 1 else ""
        text = f", {speed:.0f} {self.unit}/s" if done > self.before else ""
        self.bar.update(self.task, completed=done, total=total, speed=text)
        if self.first and self.bar.disable and now - self.told > 10 and speed:
            self.told = now
            left = (total - done) / speed
            which = f" (process 1{share})" if share else ""
            self.console.print(f"{done}/{total} {self.unit}{text}, {left:.0f} s left{which}")
