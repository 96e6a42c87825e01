"""The documentation site. `.ci/run` builds it; a build with a mistake must fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need

import genkit
from genkit import errors

ROOT = Path(__file__).parent.parent
REFERENCE = "".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md"))
)


def reference() -> set[str]:
    """The full names of the functions, classes and modules that the reference has."""
    found = re.findall(r"\.\. auto\w+:: ([\w.]+)", REFERENCE)
    names = {name if name.startswith("genkit.") else f"genkit.{name}" for name in found}
    return names | {f"genkit.{name}" for name in vars(errors)}


def test_every_public_name_is_in_the_reference() -> None:
    assert {f"genkit.{name}" for name in genkit.__all__} <= reference()
    assert {f"genkit.{name}" for name in ("interfaces", "testing", "tokens")} <= reference()


def test_the_pages_name_only_what_the_reference_has() -> None:
    """What a page calls `genkit.…`, or imports in its code: the name itself or its module."""
    known = reference() | {"genkit.plugins"}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        imported = re.findall(r"^from (genkit\.[\w.]+) import ([\w, ]+)$", text, re.MULTILINE)
        named = {f"{module}.{name}" for module, names in imported for name in names.split(", ")}
        named |= {*re.findall(r"`(genkit(?:\.\w+)+)[`(]", text)}
        wrong = {name for name in named if not {name, name.rpartition(".")[0]} & known}
        assert not wrong, page.name


# Each is added to a page: nothing; a link to a page, a heading and a folder; a name to document,
# and one in a docstring.
MISTAKES = {
    "docs/plugins.md": "\n",
    "docs/zoo.md": "\n[a](no-page.md) [b](guide.md#no-heading) [c](../examples/no-folder)\n",
    "docs/api/genkit.md": "\n```{eval-rst}\n.. autofunction:: genkit.no_such_name\n```\n",
    "docs/api/modules.md": "\n```{eval-rst}\n`genkit.no_such_module`\n```\n",
}
SAID = ["no-page.md", "no-heading", "no-folder", "no_such_name", "no_such_module"]


@pytest.mark.slow
def test_the_site_is_built_unless_a_link_or_a_name_is_wrong(tmp_path: Path) -> None:
    need("sphinx", "furo", "myst_parser")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    unused = shutil.ignore_patterns("__pycache__", "golden")
    for name in ("benchmarks", "cli", "docs", "examples", "genkit", "plugins", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unused)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs/site"]
    command += [".", "built"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name: path for path in (tmp_path / "built").rglob("*.html")}
    assert {"index.html", "README.html", "guide.html", "genkit.html"} <= pages.keys()
    for path in pages.values():  # Usable offline: nothing is fetched.
        fetched = re.findall(
            r"<(?:link|script|img)[^>]* (?:href|src)=\"((?:https?:)?//[^\"]*)",
            path.read_text(encoding="utf-8"),
        )
        assert not fetched, path
    shown = pages["plugins.html"].read_text(encoding="utf-8")
    assert 'examples/fsq"' not in shown  # A folder, without an address where it could be read.
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    urls = '[project.urls]\nSource = "https://example.org/genkit"\n\n[project.scripts]'
    (tmp_path / "pyproject.toml").write_text(project.replace("[project.scripts]", urls))
    for name, text in MISTAKES.items():
        with (tmp_path / name).open("a", encoding="utf-8") as page:
            page.write(text)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert [each for each in SAID if each not in done.stderr] == []
    shown = pages["plugins.html"].read_text(encoding="utf-8")
    assert 'href="https://example.org/genkit/blob/HEAD/examples/fsq"' in shown
