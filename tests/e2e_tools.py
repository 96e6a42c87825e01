"""Shared by the tests of built wheels: clean environments and distributions to install there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(
    *command: str | Path, cwd: Path | None = None, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code; `more` are environment variables."""
    # The environment of the test process must not leak into the clean one.
    env = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def uv() -> str:
    found = shutil.which("uv")
    assert found, "these tests need uv on the PATH"
    return found


def build(out: Path, *packages: str) -> None:
    """Build the wheels of packages in this checkout."""
    for package in packages:
        run(uv(), "build", "--wheel", "--package", package, "--out-dir", out, cwd=ROOT)


def install(environment: Path, *what: str | Path) -> Path:
    """Install into an environment with the tested versions; returns its folder of commands."""
    if not environment.exists():
        run(uv(), "venv", "--python", sys.executable, environment)
    # Run from the checkout to apply its version constraints.
    run(uv(), "pip", "install", "--python", environment, *what, cwd=ROOT)
    return environment / ("Scripts" if os.name == "nt" else "bin")


def project(folder: Path, name: str, source: str, more: str = "") -> Path:
    """A distribution `genkit-NAME` with the plugin NAME of that source, installable by path."""
    module = f"genkit_{name.replace('-', '_')}"
    (folder / name / module).mkdir(parents=True)
    (folder / name / module / "__init__.py").write_text(source)
    (folder / name / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "genkit-{name}"\nversion = "1"\n{more}'
        f'[project.entry-points."genkit.plugins"]\n{name} = "{module}"\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{module}"]\n'
    )
    return folder / name
