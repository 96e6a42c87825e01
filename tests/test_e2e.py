"""Built wheels in clean environments: what a new user installs and what the first command does."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from e2e_tools import ROOT, build, install, project, run, uv
from PIL import Image

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel and the example plugin's, built from this checkout."""
    out = tmp_path_factory.mktemp("wheels")
    build(out, "genkit-vq", "genkit-vq-fsq")
    return out


@pytest.fixture(scope="module")
def commands(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("clean") / "env", *wheels.glob("genkit_vq-*.whl"))


def test_the_wheel_contains_only_the_packages(wheels: Path) -> None:
    with zipfile.ZipFile(next(wheels.glob("genkit_vq-*.whl"))) as wheel:
        names = wheel.namelist()
        entries = wheel.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        ).decode()
    top = {name.split("/")[0] for name in names}
    plugins = {path.name for path in ROOT.glob("plugins/*/genkit_*")}
    packages = {"genkit", "genkit_cli", *plugins}
    assert {name for name in top if not name.endswith(".dist-info")} == packages
    data = ("genkit_cli/templates/", "genkit/reporting/page.html")
    code = [name for name in names if ".dist-info" not in name and not name.startswith(data)]
    assert all(name.endswith((".py", "py.typed")) for name in code)
    assert "genkit/reporting/page.html" in names
    assert "genkit/py.typed" in names
    for line in ("genkit = genkit_cli.main:main", "avqvae = genkit_avqvae", "[genkit.plugins]"):
        assert line in entries
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheels_readme_has_no_link_that_an_index_cannot_follow(wheels: Path) -> None:
    with zipfile.ZipFile(next(wheels.glob("genkit_vq-*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        text = wheel.read(name).decode()
    assert "Description-Content-Type: text/markdown" in text
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all("://" in target for target in targets)
    assert "![" not in text
    assert "docs/guide.md" in text


def test_the_main_command_from_the_wheel(commands: Path, tmp_path: Path) -> None:
    """Typed as in the README: pictures, at least 25 dB, and nearly all codes of every level."""
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
        # Four rows of images and the caption, with labels to the left.
        assert picture.height == 4 * 130 - 2 + 26
        assert picture.width > 8 * 130
    assert (tmp_path / "runs" / "faces" / "report.html").is_file()


def test_a_third_party_quantizer_is_found_used_and_reported_missing(
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
    assert "Installed: " in message
    assert " vq, " in message


GOOD = """
from genkit import Component, hookimpl
@hookimpl
def genkit_components():
    return [Component("quantizer", "{name}", "{target}")]
"""
EXTRA = '[project.optional-dependencies]\nfast = ["no-such-library"]\n'
# The source of a broken plugin, and the one line that it causes.
BROKEN = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "missing-library": (
        "import no_such_library",
        "pip install 'genkit-missing-library[fast]'",
    ),
    "misspelt-hook": (
        "from genkit import hookimpl\n@hookimpl\ndef genkit_component():\n    return []",
        "genkit_component",
    ),
    "nonsense": (
        "from genkit import hookimpl\n@hookimpl\ndef genkit_components():\n    return 3",
        "its hook genkit_components must return a list of genkit.Component, not 3",
    ),
    "taken-name": (
        GOOD.format(name="vq", target="no.such:Thing"),
        "the name quantizer 'vq' is taken by plugin 'avqvae' of genkit-vq",
    ),
}
# The source of a plugin with a valid entry but a faulty class, and the error of training with it.
FAULTY = {
    "no-class": (
        GOOD.format(name="no-class", target="genkit_no_class:Missing"),
        "cannot be loaded from genkit_no_class:Missing: module 'genkit_no_class' has no attribute",
    ),
    "no-module": (
        GOOD.format(name="no-module", target="genkit_no_module.part:Thing"),
        "there is no module 'genkit_no_module.part'; its plugin names it wrongly",
    ),
    "fails-when-built": (
        GOOD.format(name="fails-when-built", target="genkit_fails_when_built:Fails")
        + "class Fails:\n    def __init__(self, *args):\n        raise RuntimeError('boom')\n",
        "of genkit-fails-when-built 1 cannot be built: RuntimeError: boom (__init__.py, line 8)",
    ),
}
HEAVY = "import torch\n" + GOOD.format(name="heavy", target="genkit_heavy:Heavy")


def test_broken_distributions_cause_one_line_each(commands: Path, tmp_path: Path) -> None:
    distributions = [
        project(tmp_path, name, source, EXTRA if name == "missing-library" else "")
        for name, (source, _) in BROKEN.items()
    ]
    install(commands.parent, *distributions)
    try:
        done = run(commands / "genkit", "components", cwd=tmp_path)
        assert "patchgan" in done.stdout
        assert done.stderr.count("\n") == len(BROKEN)
        told = run(commands / "genkit", "plugins", cwd=tmp_path, COLUMNS="200").stdout
        for name, (_, message) in BROKEN.items():
            assert any(
                f"plugin '{name}' of genkit-{name} is left out" in line and message in line
                for line in done.stderr.splitlines()
            )
            assert f"{name}: genkit-{name} 1, left out" in told
            # This output wraps its lines, so the message is split over several.
            assert message in " ".join(told.split())
        assert "loaded in" in told
    finally:
        remove(commands, BROKEN)


def test_a_plugin_that_imports_torch_at_load_gets_a_warning(commands: Path, tmp_path: Path) -> None:
    install(commands.parent, project(tmp_path, "heavy", HEAVY))
    try:
        done = run(commands / "genkit", "plugins", cwd=tmp_path)
        assert done.stderr == ""
        text = " ".join(done.stdout.split())
        assert "heavy: genkit-heavy 1, loaded in" in text
        assert text.count("warning loading it imports torch") == 1
        assert "import that in the module that a component's target names" in text
        assert run(commands / "genkit", "components", cwd=tmp_path).stderr == ""
    finally:
        remove(commands, ["heavy"])


def test_a_faulty_class_causes_one_line_when_used(commands: Path, tmp_path: Path) -> None:
    install(
        commands.parent, *(project(tmp_path, name, source) for name, (source, _) in FAULTY.items())
    )
    try:
        listed = run(commands / "genkit", "components", "quantizer", cwd=tmp_path)
        assert listed.stderr == ""
        for name, (_, message) in FAULTY.items():
            assert name in listed.stdout
            args = ["train", "--quantizer", name, "--steps", "0", "--out", f"runs/{name}"]
            done = run(commands / "genkit", *args, cwd=tmp_path, code=1)
            assert done.stderr.startswith(f"Error: quantizer '{name}' ")
            assert done.stderr.count("\n") == 1
            assert message in done.stderr
    finally:
        remove(commands, FAULTY)


def test_another_project_of_that_name_is_reported_and_repaired(
    commands: Path, wheels: Path, tmp_path: Path
) -> None:
    other, environment = tmp_path / "other", commands.parent
    (other / "genkit").mkdir(parents=True)
    (other / "genkit" / "__init__.py").write_text("import a_package_that_is_not_here\n")
    (other / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "genkit"\nversion = "9"\n'
    )
    install(environment, other)
    told = run(commands / "genkit", "components", cwd=tmp_path, code=1).stderr
    assert "'genkit' in " in told
    assert "is another project's" in told
    assert told.count("\n") == 1
    # The two steps that the message advises.
    run(uv(), "pip", "uninstall", "--python", environment, "genkit")
    told = run(commands / "genkit", "components", cwd=tmp_path, code=1).stderr
    assert "the package 'genkit' is incomplete" in told
    (wheel,) = wheels.glob("genkit_vq-*.whl")
    run(uv(), "pip", "install", "--python", environment, "--reinstall", "--no-deps", wheel)
    assert "patchgan" in run(commands / "genkit", "components", cwd=tmp_path).stdout


def remove(commands: Path, names: Iterable[str]) -> None:
    names = [f"genkit-{name}" for name in names]
    run(uv(), "pip", "uninstall", "--python", commands.parent, *names)
