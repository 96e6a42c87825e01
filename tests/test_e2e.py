"""Built wheels in clean environments: what a stranger installs and what the first command does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.e2e


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Nothing of the environment that runs the tests may leak into the clean one.
    env = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def uv() -> str:
    found = shutil.which("uv")
    assert found, "these tests need uv on the PATH"
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel and the example's, built from this checkout."""
    out = tmp_path_factory.mktemp("wheels")
    for package in ("genkit-vq", "genkit-vq-fsq"):
        run(uv(), "build", "--wheel", "--package", package, "--out-dir", out, cwd=ROOT)
    return out


def install(environment: Path, *what: str | Path) -> Path:
    """Install into an environment, with the tested versions; returns its folder of commands."""
    if not environment.exists():
        run(uv(), "venv", "--python", sys.executable, environment)
    # Run from the checkout for the sake of its version constraints.
    run(uv(), "pip", "install", "--python", environment, *what, cwd=ROOT)
    return environment / ("Scripts" if os.name == "nt" else "bin")


@pytest.fixture(scope="module")
def commands(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("clean") / "env", *wheels.glob("genkit_vq-*.whl"))


def test_the_wheel_holds_the_packages_and_nothing_else(wheels: Path) -> None:
    with zipfile.ZipFile(next(wheels.glob("genkit_vq-*.whl"))) as wheel:
        names = wheel.namelist()
        entries = wheel.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        ).decode()
    top = {name.split("/")[0] for name in names}
    packages = {"genkit", "genkit_cli", "genkit_avqvae", "genkit_datasets", "genkit_discriminators"}
    assert {name for name in top if not name.endswith(".dist-info")} == packages
    assert all(name.endswith((".py", "py.typed")) for name in names if ".dist-info" not in name)
    assert "genkit/py.typed" in names
    for line in ("genkit = genkit_cli.main:main", "avqvae = genkit_avqvae", "[genkit.plugins]"):
        assert line in entries
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_main_command_from_the_wheel(commands: Path, tmp_path: Path) -> None:
    """As a stranger types it: pictures, at least 25 dB, and nearly all codes of every level."""
    done = run(
        commands / "genkit",
        "train",
        "--encoder",
        "aren",
        "--levels",
        "2",
        "--attention",
        "pixel",
        cwd=tmp_path,
    )
    assert done.stdout.strip().endswith(
        "The model is runs/faces/model.safetensors. Next: genkit evaluate runs/faces"
    )
    figures = json.loads(
        run(commands / "genkit", "evaluate", "runs/faces", "--json", cwd=tmp_path).stdout
    )
    print(figures)
    assert figures["images"] == 1024
    assert figures["psnr"] >= 25
    assert all(level["usage"] >= 0.95 for level in figures["levels"])
    last = sorted((tmp_path / "runs" / "faces" / "samples").iterdir())[-1]
    with Image.open(last) as picture:
        assert picture.size == (8 * 130 - 2, 4 * 130 - 2)


def test_a_third_partys_quantizer_is_found_used_and_missed(
    commands: Path, wheels: Path, tmp_path: Path
) -> None:
    environment = commands.parent
    install(environment, *wheels.glob("genkit_vq_fsq-*.whl"))
    small = [
        "--steps",
        "2",
        "--encoder.width",
        "8",
        "--decoder.width",
        "8",
        "--validation-images",
        "16",
    ]
    run(
        commands / "genkit",
        "train",
        "--encoder",
        "aren",
        "--latent-channels",
        "4",
        "--quantizer",
        "fsq",
        "--bins",
        "5",
        *small,
        "--out",
        "run",
        cwd=tmp_path,
    )
    assert (
        "625" in run(commands / "genkit", "evaluate", "run", "--images", "16", cwd=tmp_path).stdout
    )
    run(uv(), "pip", "uninstall", "--python", environment, "genkit-vq-fsq")
    code = (
        "import genkit\n"
        "try:\n    genkit.load('run')\n"
        "except genkit.MissingComponent as error:\n    print(error)"
    )
    message = run(commands / "python", "-c", code, cwd=tmp_path).stdout
    assert "needs the quantizer 'fsq', saved with 'genkit-vq-fsq 0.1.0'" in message
    assert "Installed: vq" in message


BROKEN = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "missing-library": ("import no_such_library", "No module named 'no_such_library'"),
    "misspelt-hook": (
        "from genkit import hookimpl\n@hookimpl\ndef genkit_component():\n    return []",
        "genkit_component",
    ),
}


def test_broken_distributions_cost_one_line_each(commands: Path, tmp_path: Path) -> None:
    for name, (source, _) in BROKEN.items():
        module = f"genkit_{name.replace('-', '_')}"
        project = tmp_path / name
        (project / module).mkdir(parents=True)
        (project / module / "__init__.py").write_text(source)
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "genkit-{name}"\nversion = "1"\n'
            f'[project.entry-points."genkit.plugins"]\n{name} = "{module}"\n'
            f'[tool.hatch.build.targets.wheel]\npackages = ["{module}"]\n'
        )
    install(commands.parent, *(tmp_path / name for name in BROKEN))
    done = run(commands / "genkit", "components", cwd=tmp_path)
    assert "patchgan" in done.stdout
    assert done.stderr.count("\n") == len(BROKEN)
    for name, (_, message) in BROKEN.items():
        assert any(
            f"plugin '{name}' of genkit-{name}" in line and message in line
            for line in done.stderr.splitlines()
        )
    run(
        uv(),
        "pip",
        "uninstall",
        "--python",
        commands.parent,
        *(f"genkit-{name}" for name in BROKEN),
    )
