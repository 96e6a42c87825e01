"""`genkit new`: the packages that it writes pass their contract tests and train."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, distribution, flags, genkit_here, invoke
from e2e_tools import build, install, run, uv
from genkit_cli.commands.new import kinds

from genkit import testing
from genkit.plugin.registry import registry

# Their contract tests start further processes, which takes seconds.
SEVERAL = ("metric", "quantizer")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """A function that writes a package, and installs it for this process and those it starts."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    made = []

    def write(kind: str, name: str) -> Path:
        done = genkit_here("new", kind, name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / name
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points = project["entry-points"]["genkit.plugins"]
        distribution(place, project["name"], project["version"], points)
        for module in points.values():
            (place / module).symlink_to(folder / module, target_is_directory=True)
            made.append(module)
        importlib.invalidate_caches()
        registry.cache_clear()
        return folder

    yield write
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]
    registry.cache_clear()


def own_test(folder: Path) -> Callable[[], None]:
    """The test function of a written package."""
    (file,) = (folder / "tests").iterdir()
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (function,) = [value for name, value in vars(module).items() if name.startswith("test_")]
    return function


def test_every_kind_of_the_contract_kit_has_a_template() -> None:
    # An importer is checked on another project's files.
    checked = {name.removeprefix("check_") for name in testing.__all__} - {"importer"}
    assert set(kinds()) == checked


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SEVERAL)) for kind in kinds()],
)
def test_a_new_package_passes_its_own_test(kind: str, site: Any) -> None:
    folder = site(kind, "my-own2")
    component = registry().component(kind, "my-own2")
    assert str(component.origin) == "genkit-my-own2 0.1.0"
    assert component.load().__name__ == "MyOwn2"
    own_test(folder)()


@pytest.mark.parametrize("kind", SEVERAL)
def test_the_slow_ones_pass_in_one_process(kind: str, site: Any) -> None:
    site(kind, "mine")
    getattr(testing, f"check_{kind}")("mine", processes=1)


@pytest.mark.parametrize("kind", kinds())
def test_a_new_package_is_plain_python_without_traces_of_the_template(
    kind: str, tmp_path: Path
) -> None:
    done = genkit_here("new", kind, "a-b", cwd=tmp_path)
    files = [path for path in (tmp_path / "a-b").rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "emplate" not in text, file
        if file.suffix == ".py":
            compile(text, file, "exec")
    assert "import torch" not in (tmp_path / "a-b" / "genkit_a_b" / "__init__.py").read_text()
    lines = done.stdout.splitlines()
    assert lines[1] == "Install it: uv pip install -e a-b"
    assert lines[3].startswith("Use it: genkit ")
    assert "a-b" in lines[3]
    assert lines[3].removeprefix("Use it: ") in (tmp_path / "a-b" / "README.md").read_text()


def test_new_components_train_together(site: Any, tmp_path: Path) -> None:
    chosen: list[str] = []
    parts = {
        "attention": "attention",
        "dataset": "data",
        "decoder": "decoder",
        "discriminator": "discriminator",
        "fusion": "fusion",
        "loss": "reconstruction",
        "optimizer": "optimizer",
        "perceptual": "perceptual",
        "quantizer": "quantizer",
        "schedule": "schedule",
    }
    for kind, option in parts.items():
        site(kind, f"new-{kind}")
        # The folder of its package lies there too.
        chosen += [f"--{option}", f"new-{kind}" + ":" * (kind == "dataset")]
    for kind in ("metric", "features"):
        site(kind, f"new-{kind}")
    narrow = {key: value for key, value in TINY.items() if key not in ("data", "decoder")}
    done = genkit_here("train", *chosen, *flags(narrow), "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = ["--metric", "new-metric", "--metric", "distances?features=new-features"]
    done = genkit_here("evaluate", "run", "--images", "16", *metrics, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "new-metric" in done.stdout


def test_a_new_encoder_and_a_new_prior_train(site: Any, tmp_path: Path) -> None:
    site("encoder", "far")
    site("prior", "near")
    few = {
        key: value
        for key, value in TINY.items()
        if key not in ("encoder", "validate_every", "checkpoint_every")
    } | {"steps": 2, "encoder.width": 8}
    done = genkit_here("train", "--encoder", "far", *flags(few), "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small = flags({"steps": 2, "batch_size": 4, "validation_images": 4, "shown": 2, "views": 1})
    done = genkit_here(
        "train-prior", "run", "--prior", "near", *small, "--data.size", "32", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "name", "code", "message"),
    [
        ("quantiser", "x", 2, "There is no template for the kind 'quantiser'. Did you mean 'quant"),
        ("quantizer", "fsq", 1, "quantizer 'fsq' exists already: choose another NAME"),
        ("attention", "zoo", 1, "a plugin called 'zoo' is installed: choose another NAME"),
        ("encoder", "cli", 1, "a package called 'genkit_cli' exists: choose another NAME"),
        ("encoder", "My_Net", 2, "use small letters, digits and dashes"),
        ("encoder", "none", 2, "cannot be the name of a component"),
        ("encoder", "../x", 2, "cannot be the name of a component"),
        ("encoder", "there", 1, "'there' already exists: choose another NAME"),
    ],
)
def test_names_that_cannot_be_are_refused(
    kind: str,
    name: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    found, text = invoke("new", kind, name)
    assert (found, message in text) == (code, True), text
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="needs uv")
def test_a_new_package_installs_and_trains_in_a_clean_environment(tmp_path: Path) -> None:
    build(tmp_path / "wheels", "genkit-vq")
    commands = install(tmp_path / "env", *(tmp_path / "wheels").glob("genkit_vq-*.whl"))
    run(commands / "genkit", "new", "quantizer", "mine", cwd=tmp_path)
    python = commands / "python"
    run(uv(), "pip", "install", "-q", "--python", python, "-e", "mine", "pytest", cwd=tmp_path)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "mine"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout
    small = flags({**TINY, "quantizer": {}, "steps": 2})
    run(commands / "genkit", "train", "--quantizer", "mine", *small, cwd=tmp_path)
    assert (
        "genkit-mine 0.1.0"
        in run(commands / "genkit", "inspect", "runs/faces", cwd=tmp_path).stdout
    )
