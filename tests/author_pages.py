"""The packages shown on the author pages, written to disk exactly as shown."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

from conftest import distribution

DOCS = Path(__file__).parent.parent / "docs"
# The kinds whose names differ from those of their pages.
_KINDS = {"data-set": "dataset", "perceptual-loss": "perceptual"}
PAGES = {
    _KINDS.get(name, name): path
    for path in DOCS.glob("write-a*.md")
    for name in [re.sub("^write-an?-", "", path.stem)]
}
# It shows packages of other kinds.
REFERENCE = DOCS / "plugins.md"
_BLOCK = re.compile(r"^```(\S+)(?: file=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `(.+?)` \| `(.+?)` \| (.+?) \|$", re.MULTILINE)


class Slip(NamedTuple):
    """A change to a page's file, and the test's failure as the page describes it."""

    right: str
    wrong: str
    message: str


def text(kind: str) -> str:
    return PAGES.get(kind, REFERENCE).read_text(encoding="utf-8")


def files(kind: str) -> dict[str, str]:
    """The files that a kind's page shows: contents by path."""
    return {file: block for _, file, block in _BLOCK.findall(text(kind)) if file}


def packages(kind: str) -> list[str]:
    """Their folders, in the order of the page."""
    return list(dict.fromkeys(file.partition("/")[0] for file in files(kind)))


def commands(kind: str) -> list[list[str]]:
    """The page's `genkit …` commands, without the word `genkit`."""
    lines = [
        line
        for language, _, block in _BLOCK.findall(text(kind))
        if language == "sh"
        for line in block.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("genkit ")]


def slips(kind: str) -> list[Slip]:
    return [Slip(*row) for row in _ROW.findall(text(kind))]


def write(kind: str, folder: Path) -> None:
    """Write a page's packages to disk, as an author would."""
    for file, block in files(kind).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")


def install(kind: str, folder: Path, site: Path) -> None:
    """The same, and install them into a folder of distributions like pip."""
    write(kind, folder)
    for package in packages(kind):
        project = tomllib.loads((folder / package / "pyproject.toml").read_text(encoding="utf-8"))
        name, version = project["project"]["name"], project["project"]["version"]
        points = project["project"]["entry-points"]["genkit.plugins"]
        distribution(site, name, version, points)
        for module in points.values():
            (site / module).symlink_to(folder / package / module, target_is_directory=True)
