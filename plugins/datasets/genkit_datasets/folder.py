"""Image files in a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from genkit.data.arrays import check_header
from genkit.distributed import once_per_machine
from genkit.errors import DataError, reason_of
from genkit.files import is_folder, printable
from genkit_datasets import FolderOptions
from genkit_datasets.crops import Crops
from genkit_datasets.walk import described, walk


class File(NamedTuple):
    """An image file: the root folder, the file's path below it, and its size in bytes."""

    root: Path
    name: str
    size: int


class Folder(Crops[File]):
    """The readable images below a folder, split by file.

    Subfolders are classes, and a text file next to an image is its caption. Files with unreadable
    headers are left out and named in `problems`.
    """

    def __init__(self, options: FolderOptions, size: tuple[int, int] | None, seed: int) -> None:
        super().__init__(options, size)
        if not options.location:
            raise DataError("no image folder was named: name one with --data")
        self.others: Counter[str] = Counter()
        files = self._scanned(options.location)
        # Numbered files have the same names in every folder; their sizes nearly always differ.
        listed = "\n".join(f"{self.file_name(file)}:{file.size}" for file in files)
        # The prefix differs because all images were trained on: evaluation without the held-out
        # folder must not hold out a share of them.
        kind = "folder-whole:" if options.heldout_folder else "folder:"
        self.fingerprint = kind + hashlib.sha256(listed.encode()).hexdigest()
        self.take(files, self._scanned(options.heldout_folder) if options.heldout_folder else None)
        self.take_labels([_class_of(file) for file in self.files])

    @property
    def notes(self) -> list[str]:
        """Sentences to print before training."""
        return [*super().notes, *([self.passed_over] if self.others else [])]

    @property
    def passed_over(self) -> str:
        """A sentence on files that are not images; empty if all are."""
        return f"Not read: {described(self.others)}." if self.others else ""

    def file_name(self, file: File) -> str:
        """The file's path below the root folder."""
        return printable(file.name)

    def encoded(self, file: File) -> Path:
        """The file's path; `ValueError` if the file is no longer the one that was listed."""
        path = file.root / file.name
        if (size := path.stat().st_size) != file.size:
            raise ValueError(f"it had {file.size} bytes when it was listed, and now has {size}")
        return path

    def caption_of(self, file: File) -> str | None:
        """The content of the `.txt` file next to an image, if any."""
        try:
            text = (file.root / file.name).with_suffix(".txt").read_text("utf-8", "replace")
        except OSError:
            return None
        return text.strip()

    def _scanned(self, location: str) -> list[File]:
        """The images with readable headers in a folder, or the one file."""
        # The processes of a machine would all read every header of the same disk.
        files, others, problems = once_per_machine(lambda: self._listed(location))
        self.others += others
        self.problems |= problems
        return files

    def _listed(self, location: str) -> tuple[list[File], Counter[str], dict[str, str]]:
        """The readable images, counts of other files, and the reasons of unreadable ones."""
        root = Path(location)
        if not os.path.exists(root):
            raise DataError(f"the image folder '{location}' does not exist")
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
                problems[printable(name)] = printable(reason_of(error))
            else:
                files.append(file)
        if not files:
            raise DataError(f"no image can be read in '{location}': {_why(root, others, problems)}")
        return files, others, problems


def _class_of(file: File) -> str | None:
    """The top-level subfolder that contains an image, at any depth."""
    folder, separator, _ = file.name.partition(os.sep)
    return printable(folder) if separator else None


def _why(root: Path, others: Counter[str], problems: Mapping[str, str]) -> str:
    """The reason why a folder has no images, and what to do."""
    if first := next(iter(problems.items()), None):
        files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
        return f"{files} cannot be read, first {first[0]}: {first[1]}"
    if not others:
        return "it holds no files"
    why = f"it holds {described(others)}"
    if others[".tar"]:
        why += f"; to read tar files, use a pattern: --data '{root}/*.tar'"
    elif others[".parquet"] or others[".arrow"]:
        why += f"; to read a Hugging Face data set, use --data hf:{root}"
    elif others[".zip"]:
        why += f"; unpack the zip files, or read them with --data hf:{root}"
    return why
