"""Start-up time: commands that only print information, and the first training step."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import table
from benchmarks.speed.timing import Settings, cell, spread

TITLE = "Start-up"

# The minimum for any command with these libraries: a search for plugins and a help page by rich.
_BARE = """
import click, pluggy
from rich.console import Console

@click.group()
def cli():
    "A command without contents."

@cli.command()
def show():
    "Show nothing."

pluggy.PluginManager("bare").load_setuptools_entrypoints("bare.plugins")
Console().print(cli.get_help(click.Context(cli)))
"""
# The command `genkit`, ended as soon as training reports its first step.
_FIRST = """
import os, sys
from genkit_cli.main import main
from genkit_cli.progress import Progress

def end(self, step):
    print("step", step, "is done", flush=True)
    os._exit(0)

Progress.advance = end
main()
"""
_PYTHON = (sys.executable, "-c")
_GENKIT = str(Path(sys.executable).with_name("genkit"))
_TRAIN = ("train", "--encoder", "aren", "--levels", "2", "--attention", "pixel")
_IMPORTS = "import torch, accelerate"

# A label, a command and a text that it must print; the others are compared with the first.
Program = tuple[str, Sequence[str], str]
_TELL: list[Program] = [
    ("click + pluggy + rich", (*_PYTHON, _BARE), "show  Show nothing."),
    *(
        (f"genkit {args}", (_GENKIT, *args.split()), wanted)
        for args, wanted in (
            ("--help", "Usage: genkit"),
            ("train --encoder aren --help", "encoder 'aren':"),
            ("components", "hierarchical"),
            ("plugins", "discriminators: genkit-vq"),
            ("inspect model", "levels, finest first:"),
        )
    ),
]
_STEP: list[Program] = [
    (_IMPORTS, (*_PYTHON, _IMPORTS), ""),
    (
        f"genkit {' '.join(_TRAIN)} … step 1/350",
        (*_PYTHON, _FIRST, *_TRAIN, "--out", "run"),
        "step 1 is done",
    ),
]


def measure(settings: Settings) -> dict[str, Any]:
    """Whole processes in turn: A B C A B C …, after a first round that is checked but not timed."""
    with tempfile.TemporaryDirectory() as folder:
        # A writable bytecode cache, so that modules are compiled as after the first start.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        place = Path(folder)
        _run([_GENKIT, "train", "--steps", "0", "--out", "model"], place, environment)
        return {
            "tell": _compare(_TELL, 4 if settings.quick else 25, place, environment),
            "step": _compare(_STEP, 1 if settings.quick else 7, place, environment),
        }


def _compare(
    programs: Sequence[Program], rounds: int, folder: Path, environment: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    for label, command, wanted in programs:
        if wanted not in (printed := _run(command, folder, environment)[2]):
            raise RuntimeError(f"{label} prints no {wanted!r}: {printed}")
    times: dict[str, list[tuple[float, float, str]]] = {label: [] for label, *_ in programs}
    for _ in range(rounds):
        for label, command, _ in programs:
            times[label].append(_run(command, folder, environment))
    bare = times[programs[0][0]]
    return {
        label: {
            "processor": spread([cpu for cpu, _, _ in each]),
            "wall": spread([wall for _, wall, _ in each]),
            "ratio": spread([a[0] / b[0] for a, b in zip(each, bare, strict=True)]),
            "wall_ratio": spread([a[1] / b[1] for a, b in zip(each, bare, strict=True)]),
        }
        for label, each in times.items()
    }


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[float, float, str]:
    """A process's CPU time and wall time in seconds, and its output."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, done.stdout


def page(figures: dict[str, Any], folder: Path) -> str:
    return "\n\n".join(
        [
            "Whole processes from start to end, with compiled modules. Ratios are of CPU time, "
            "relative to the first row: a command that imports click, pluggy and rich.console, "
            "searches all installed distributions for its plugins, and prints its help. "
            "genkit's own part goes mostly into the option classes of all components.",
            _table(figures["tell"], 1.75),
            "Until the end of the first training step of a run with default options: data, model, "
            "k-means of the first batch, optimizer step.",
            _table(figures["step"], 1.5),
        ]
    )


def _table(programs: Mapping[str, Mapping[str, Any]], limit: float) -> str:
    rows = []
    for number, (label, each) in enumerate(programs.items()):
        processor, wall = (
            {**each[key], **{k: 1000 * each[key][k] for k in ("median", "low", "high")}}
            for key in ("processor", "wall")
        )
        rows.append(
            (
                label if "+" in label else f"`{label}`",
                cell(processor, 0),
                cell(wall, 0),
                cell(each["ratio"]),
                cell(each["wall_ratio"]),
                f"{limit}" if number and "genkit" in label else "",
            )
        )
    head = ("", "CPU time, ms", "wall time, ms", "ratio", "ratio of wall time", "limit")
    return table(head, rows)
