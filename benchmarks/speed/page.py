"""`python -m benchmarks speed`: compares genkit with other libraries in docs/performance.md."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).parent.parent.parent / "docs"
# The page's order.
SECTIONS = (
    *("search", "attention", "step", "memory", "input", "encode"),
    *("sample", "startup", "growth", "quality"),
    "gpu",
)
# Measured with --gpu alone, and its place on the page says so where it is missing.
_ON_GPUS = "gpu"


@click.command()
@click.argument("sections", nargs=-1, metavar="[SECTION]...", type=click.Choice(SECTIONS))
@click.option("--quick", is_flag=True, help="Few rounds and small sizes; not a measurement.")
@click.option("--gpu", is_flag=True, help="Measure on a GPU where possible.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the page; by default docs, or with --quick a temporary folder.",
)
@click.option(
    "--render", is_flag=True, help="Write the page from existing figures, without measuring."
)
@click.option("--measure", "one", hidden=True, help="Measure this section in this process.")
def main(
    sections: tuple[str, ...],
    quick: bool,
    gpu: bool,
    threads: int,
    out: Path | None,
    render: bool,
    one: str | None,
) -> None:
    """Measure each SECTION, or all, in its own process, and write OUT/performance.md.

    Sections are search, attention, step, memory, input, encode, sample, startup, growth, quality
    and gpu, which needs --gpu: genkit alone on a GPU.

    The figures of a section are stored in OUT/performance/SECTION.json, so that one section can be
    measured again alone. The section `quality` trains on the crops in the folder named by the
    environment variable GENKIT_P64. The compared libraries are in the dependency group
    `benchmarks`; the page lists the missing ones.
    """
    out = out or (Path(tempfile.mkdtemp()) if quick else DOCS)
    folder = out / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    if one:
        _measure(one, quick, gpu, threads, folder)
        return
    chosen = sections or [name for name in SECTIONS if gpu or name != _ON_GPUS]
    for name in () if render else chosen:
        click.echo(f"{name} …", err=True)
        flags = [*["--quick"] * quick, *["--gpu"] * gpu, "--threads", str(threads)]
        # Threads that spin while waiting can make a busy machine many times slower.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        if not gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks",
                "speed",
                "--measure",
                name,
                *flags,
                "--out",
                str(out),
            ],
            env=environment,
        )
        if done.returncode:
            raise click.ClickException(f"the section {name} failed; see above")
    (out / "performance.md").write_text(_page(folder), encoding="utf-8")
    click.echo(f"{out / 'performance.md'} is written", err=True)


def _measure(name: str, quick: bool, gpu: bool, threads: int, folder: Path) -> None:
    import torch

    from benchmarks.speed.timing import Settings

    found = torch.accelerator.is_available() if name == _ON_GPUS else torch.cuda.is_available()
    if (gpu or name == _ON_GPUS) and not found:
        raise click.ClickException("--gpu needs a GPU, but torch finds none on this machine")
    torch.set_num_threads(threads)
    section = importlib.import_module(f"benchmarks.speed.{name}")
    load = os.getloadavg()[0]
    settings = Settings(quick, "cuda" if gpu else "cpu", threads)
    figures = {"machine": machine(gpu, threads, load), "quick": quick}
    figures |= section.measure(settings)
    place = folder / f"{name}{'-gpu' if gpu else ''}.json"
    place.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def machine(gpu: bool, threads: int, load: float) -> dict[str, Any]:
    import torch

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    units = [
        name
        for name, there in (("AVX-512", "avx512f"), ("bf16 units", "amx_bf16"))
        if Path("/proc/cpuinfo").exists() and there in Path("/proc/cpuinfo").read_text()
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _card() if gpu else processor,
        "units": units,
        "threads": threads,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "load": round(load, 2),
        "torch": str(torch.__version__),
    }


def _card() -> str:
    import torch

    from genkit.devices import device_text

    return device_text(torch.accelerator.current_accelerator() or torch.device("cpu"))


def about(machine: Mapping[str, Any]) -> str:
    """One line about the machine and the day."""
    return ", ".join(
        [
            machine["processor"],
            *machine["units"],
            f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}",
            f"torch {machine['torch']}",
            machine["date"],
            f"load average {machine['load']} before",
        ]
    )


def _page(folder: Path) -> str:
    parts = [
        "# Performance",
        "Written by `uv run python -m benchmarks speed`. Everything in a table ran in "
        "turn in one process, A B A B …; figures are medians, with quartiles in brackets, and "
        "ratios compare round by round. Times on one thread are the processor's.",
    ]
    for name in SECTIONS:
        places = [folder / f"{name}.json", folder / f"{name}-gpu.json"]
        if name == _ON_GPUS and not places[1].exists():
            section = importlib.import_module(f"benchmarks.speed.{name}")
            parts += [f"## {section.TITLE}", section.WITHOUT]
        for place in places:
            if not place.exists():
                continue
            figures = json.loads(place.read_text(encoding="utf-8"))
            section = importlib.import_module(f"benchmarks.speed.{name}")
            quick = " A quick look, not a measurement." if figures["quick"] else ""
            title = section.TITLE
            title += " on a GPU" * (place.stem.endswith("-gpu") and name != _ON_GPUS)
            parts += [
                f"## {title}",
                f"*{about(figures['machine'])}.{quick}*",
                section.page(figures, folder),
            ]
    return "\n\n".join(parts) + "\n"
