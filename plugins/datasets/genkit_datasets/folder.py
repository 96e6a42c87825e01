"""Image files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from genkit.errors import DataError
from genkit.files import is_folder, printable
from genkit_datasets import FolderOptions
from genkit_datasets.crops import Crops
from genkit_datasets.opening import check_header, read_rgb
from genkit_datasets.walk import told, walk

__all__ = ["Folder", "read_rgb"]


class File(NamedTuple):
    """An image file: the folder that was read, its name below it, and its size in bytes."""

    root: Path
    name: str
    size: int


class Folder(Crops[File]):
    """The readable images below a folder, split by file.

    Its subfolders are classes, and a text file beside an image is its caption. Files whose
    header cannot be read are left out and named in `problems`.
    """

    def __init__(self, options: FolderOptions, size: tuple[int, int], seed: int) -> None:
        super().__init__(options, size)
        if not options.location:
            raise DataError("the folder of images is not known: name it with --data")
        self.others: Counter[str] = Counter()
        files = self._scanned(options.location)
        # Names alone do not tell one numbered folder from another; sizes nearly always do.
        listed = "\n".join(f"{self.file_name(file)}:{file.size}" for file in files)
        # Without the folder held out, nobody shall take a share of what was trained on for it.
        kind = "folder-whole:" if options.heldout_folder else "folder:"
        self.fingerprint = kind + hashlib.sha256(listed.encode()).hexdigest()
        self.take(files, self._scanned(options.heldout_folder) if options.heldout_folder else None)
        self.take_labels([_class_of(file) for file in self.files])

    @property
    def notes(self) -> list[str]:
        """Sentences to print before training."""
        others = [f"Not read: {told(self.others)}."] if self.others else []
        return [*super().notes, *others]

    def file_name(self, file: File) -> str:
        """The file's path below the folder."""
        return printable(file.name)

    def encoded(self, file: File) -> Path:
        """The file."""
        return file.root / file.name

    def caption_of(self, file: File) -> str | None:
        """The content of the `.txt` beside an image."""
        try:
            text = (file.root / file.name).with_suffix(".txt").read_text("utf-8", "replace")
        except OSError:
            return None
        return text.strip()

    def _scanned(self, location: str) -> list[File]:
        """The images in a folder, or the one file, whose headers can be read."""
        root = Path(location)
        if not os.path.exists(root):
            raise DataError(f"there is no folder '{location}' to read images from")
        problems: dict[str, str] = {}
        others: Counter[str] = Counter()
        if is_folder(root):
            names, others, problems = walk(root)
        else:
            root, names = root.parent, [root.name]
        files = []
        for name in names:
            try:
                file = File(root, name, (root / name).stat().st_size)
                check_header(root / name, self.look.max_pixels)
            except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
                problems[printable(name)] = printable(f"{type(error).__name__}: {error}")
            else:
                files.append(file)
        if not files:
            raise DataError(f"no image can be read in '{location}': {_why(root, others, problems)}")
        self.others += others
        self.problems |= problems
        return files


def _class_of(file: File) -> str | None:
    """The folder below the root that an image lies in, at whatever depth."""
    folder, separator, _ = file.name.partition(os.sep)
    return printable(folder) if separator else None


def _why(root: Path, others: Counter[str], problems: Mapping[str, str]) -> str:
    """Why there are no images."""
    if first := next(iter(problems.items()), None):
        return f"{len(problems)} cannot be read, first {first[0]}: {first[1]}"
    if not others:
        return "it holds no files"
    why = f"it holds {told(others)}"
    if others[".tar"]:
        why += f"; tar files are named by a pattern: --data '{root}/*.tar'"
    elif others[".parquet"] or others[".arrow"]:
        why += f"; data sets of the library datasets are named with hf: --data hf:{root}"
    elif others[".zip"]:
        why += f"; unpack its zip files, or have them read with --data hf:{root}"
    return why
