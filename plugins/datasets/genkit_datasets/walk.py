"""The files below a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from genkit.data.opening import ARRAYS, endings
from genkit.files import printable
from genkit.run.config import is_run

# The subfolders of a run directory.
_OF_A_RUN = {"samples", "codes", "checkpoints", "failure", "tracker"}
_SHOWN = 5


class Found(NamedTuple):
    """Names of image files, counts of other file extensions, and errors by folder."""

    names: list[str]
    others: Counter[str]
    problems: dict[str, str]


def walk(root: Path) -> Found:
    """The names of the image files below `root`.

    Hidden files and folders are left out, and so are run directories, whose images genkit wrote
    itself. NumPy arrays are images only where there are no pictures.
    """
    found = Found([], Counter(), {})
    arrays = []

    def cannot_be_listed(error: OSError) -> None:
        place = os.path.relpath(error.filename, root)
        found.problems[printable(place)] = f"it cannot be listed: {error.strerror}"

    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=cannot_be_listed):
        # A symbolic link may form a cycle.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        own = _OF_A_RUN if folder == os.fspath(root) and is_run(root) else set()
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not is_hidden(name) and name not in own and not is_run(Path(folder, name))
        )
        kinds = {*endings(), ARRAYS}
        images = {stem for stem, end in map(os.path.splitext, names) if end.lower() in kinds}
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            ending = ending.lower()
            # A text file next to an image is its caption.
            if is_hidden(name) or (ending == ".txt" and stem in images):
                continue
            path = os.path.relpath(os.path.join(folder, name), root)
            if ending in endings():
                found.names.append(path)
            elif ending == ARRAYS:
                arrays.append(path)
            else:
                found.others[ending] += 1
    if found.names and arrays:
        found.others[ARRAYS] += len(arrays)
    else:
        found.names.extend(arrays)
    found.names.sort()
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: `.x`, or the `__MACOSX` that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def described(others: Counter[str]) -> str:
    """A description of the unread files, such as `6 files of other endings (.heic, none)`."""
    count = others.total()
    files = "1 file" if count == 1 else f"{count} files"
    return f"{files} of {'another ending' if len(others) == 1 else 'other endings'} " + (
        f"({listed(others)})"
    )


def listed(endings: Counter[str]) -> str:
    """The most frequent file extensions, such as `.heic, none`."""
    common = [printable(ending) or "none" for ending, _ in endings.most_common(_SHOWN)]
    return ", ".join(common) + (", …" if len(endings) > _SHOWN else "")
