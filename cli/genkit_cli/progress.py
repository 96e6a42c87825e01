"""How training looks: a bar over its figures in a terminal, and elsewhere a line for each row."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from genkit.checkpoint.inspect import codebook_text
from genkit.evaluation.figures import labelled
from genkit.evaluation.images import data_text
from genkit.run.options import TokenizerRun
from genkit_cli.terminal import Output, typed


class Progress:
    """Shows a training run; the loop tells it what happens."""

    def __init__(self) -> None:
        # Training continues if its output has no reader, or its disk is full.
        output: Any = Output(sys.stdout) if sys.stdout else None
        self.console = Console(file=output, highlight=False, markup=False)
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
            if self.console.is_terminal
            else None
        )
        self.latest: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}
        self.collapsed: list[int] = []

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

    def begin(
        self, run: TokenizerRun, directory: Path, step: int, facts: Mapping[str, Any]
    ) -> None:
        """Say what is trained on what, and start the display."""
        count = facts["processes"]
        where = f"{facts['device']}, {count} processes" if count > 1 else facts["device"]
        self.console.print(
            f"{run.encoder.name} + {run.quantizer.name} + {run.decoder.name}, "
            f"{facts['parameters'] / 1e6:.2f} M parameters, on {where}"
        )
        self.console.print(
            f"{data_text(run.data)}: {facts['training']} images to train on, "
            f"{facts['heldout']} held out, {run.resolution} px → {directory}",
            soft_wrap=True,
        )
        if unreadable := facts["unreadable"]:
            self.console.print(
                f"{len(unreadable)} files cannot be read and are left out; "
                f"see {directory / 'unreadable.txt'}",
                soft_wrap=True,
            )
        for note in facts["notes"]:
            self.console.print(note, soft_wrap=True)
        for problem in facts["passed_over"]:
            self.console.print(f"A checkpoint cannot be read, {problem}", soft_wrap=True)
        if run.discriminator and 0 < run.steps <= run.discriminator_start:
            self._warn(
                f"the discriminator would come in at step {run.discriminator_start}, which this "
                "run does not reach: give a lower --discriminator-start"
            )
        for change in facts["changed"]:
            self.console.print(f"Changed since: {change}", soft_wrap=True)
        if facts["resumed"]:
            where = f"Going on from step {step}." if step else "No checkpoint yet: starting again."
            self.console.print(where)
        self.bar.reset(self.task, total=run.steps, completed=step)
        self.total, self.started, self.first = run.steps, time.monotonic(), step
        if self.live:
            self.live.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show the newest figures."""
        self.latest = dict(row)
        self.validation = row.get("validation", self.validation)
        if self.live:
            self.live.update(Group(self.bar, _table(self.latest, self.validation)))
        else:
            self.console.print(self._line(row), soft_wrap=True)
        alarms = row.get("alarms", [])
        for alarm in alarms:
            if alarm["level"] not in self.collapsed:
                self._warn(alarm["message"])
        self.collapsed = [alarm["level"] for alarm in alarms]

    def end(self, directory: Path, step: int, done: bool) -> None:
        """Say where the model is and what to type next."""
        if self.live:
            self.live.stop()
        if not done:
            self.console.print(
                f"Interrupted at step {step}; everything is saved. "
                f"Go on with: genkit train --resume --out {typed(directory)}",
                soft_wrap=True,
            )
            return
        if figures := self.validation:
            use = ", ".join(f"{level['usage']:.0%}" for level in figures["levels"])
            self.console.print(
                f"Held-out images: {', '.join(labelled(figures))}, "
                f"codes in use by level: {use}. Look at {directory / 'samples'}{os.sep}",
                soft_wrap=True,
            )
        if self.collapsed:
            which = "level" if len(self.collapsed) == 1 else "levels"
            levels = " and ".join(str(level) for level in self.collapsed)
            self._warn(f"{which} {levels} ended collapsed; see {directory / 'codes'}{os.sep}")
        self.console.print(
            f"The model is {directory / 'model.safetensors'}. "
            f"Next: genkit evaluate {typed(directory)}",
            soft_wrap=True,
        )

    def _warn(self, text: str) -> None:
        # Words are kept whole in a terminal, lines elsewhere.
        self.console.print(f"Warning: {text}", style="bold red", soft_wrap=not self.live)

    def _line(self, row: Mapping[str, Any]) -> str:
        done = row["step"] - self.first
        left = (time.monotonic() - self.started) / max(1, done) * (self.total - row["step"])
        losses = " ".join(f"{name} {value:.4f}" for name, value in row.items() if name in _LOSSES)
        codes = " ".join(f"{level['active']}/{codebook_text(level)}" for level in row["levels"])
        text = (
            f"step {row['step']}/{self.total} {losses} psnr {row['psnr']:.2f} codes {codes} "
            f"{row['images_per_second']:.0f} images/s {left:.0f} s left"
        )
        if validation := row.get("validation"):
            text += f" | held-out {' '.join(labelled(validation))}"
        return text


_LOSSES = (
    "loss",
    "reconstruction",
    "quantization",
    "perceptual",
    "adversarial",
    "discriminator",
    "lecam",
    "r1",
)


def _table(row: Mapping[str, Any], validation: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    losses = [f"{name} {row[name]:.4f}" for name in _LOSSES if name in row]
    table.add_row(*losses)
    table.add_row(
        f"PSNR {row['psnr']:.2f} dB",
        f"{row['images_per_second']:.0f} images/s",
        f"lr {row['lr']:.2g}",
    )
    codes = [
        f"level {index}: {level['active']} of {codebook_text(level)} codes, "
        f"perplexity {level['perplexity']:.0f}, longest unused {level['unused']} images"
        for index, level in enumerate(row["levels"])
    ]
    lines = Table.grid()
    lines.add_row(table)
    collapsed = {alarm["level"] for alarm in row.get("alarms", [])}
    for index, text in enumerate(codes):
        lines.add_row(Text(text, style="bold red" if index in collapsed else ""))
    if validation:
        use = ", ".join(f"{level['usage']:.0%}" for level in validation["levels"])
        lines.add_row(f"held-out: {', '.join(labelled(validation))}, codes in use {use}")
    return lines
