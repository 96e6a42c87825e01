"""Image files of a folder."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from pathlib import Path

from genkit.errors import DataError
from genkit.files import is_folder, printable
from genkit_datasets import FolderOptions
from genkit_datasets.crops import Crops
from genkit_datasets.opening import check_header, read_rgb
from genkit_datasets.split import files_of
from genkit_datasets.walk import told, walk

__all__ = ["Folder", "read_rgb"]

# A file's name below the folder, its size and its time of change.
File = tuple[str, int, int]


class Folder(Crops[str]):
    """The readable images below a folder, split by file.

    Files whose header cannot be read are left out and named in `problems`.
    """

    def __init__(self, options: FolderOptions, split: str, resolution: int, seed: int) -> None:
        super().__init__(options, split, resolution)
        if not options.location:
            raise DataError("the folder of images is not known: name it with --data")
        apart = split == "heldout" and options.heldout_folder
        location = options.heldout_folder if apart else options.location
        self.root = Path(location)
        if not os.path.exists(self.root):
            raise DataError(f"there is no folder '{location}' to read images from")
        self.others: Counter[str] = Counter()
        if is_folder(self.root):
            names, self.others, self.problems = walk(self.root)
        else:
            self.root, names = self.root.parent, [self.root.name]
        files = tuple(file for name in names if (file := self._file(name)))
        problems = _unreadable(self.root, files, options.max_pixels)
        self.problems |= {printable(name): reason for name, reason in problems.items()}
        sizes = {name: size for name, size, _ in files if name not in problems}
        readable = list(sizes)
        if not readable:
            raise DataError(f"no image can be read in '{location}': {self._why()}")
        # Names alone do not tell one numbered folder from another; sizes nearly always do.
        listed = "\n".join(f"{printable(name)}:{size}" for name, size in sizes.items())
        # Without the folder held out, nobody shall take a share of what was trained on for it.
        kind = "folder-whole:" if options.heldout_folder else "folder:"
        self.fingerprint = kind + hashlib.sha256(listed.encode()).hexdigest()
        whole = split == "all" or options.heldout_folder
        self.take(readable if whole else files_of(split, readable, printable, options))
        self.names = self.files

    @property
    def notes(self) -> list[str]:
        """Sentences to print before training."""
        others = [f"Not read: {told(self.others)}."] if self.others else []
        return [*super().notes, *others]

    def file_name(self, file: str) -> str:
        """The file's path below the folder."""
        return printable(file)

    def encoded(self, file: str) -> Path:
        """The file."""
        return self.root / file

    def _file(self, name: str) -> File | None:
        try:
            status = (self.root / name).stat()
        except OSError as error:
            self.problems[printable(name)] = _reason(error)
            return None
        return name, status.st_size, status.st_mtime_ns

    def _why(self) -> str:
        """Why there are no images."""
        if first := next(iter(self.problems.items()), None):
            return f"{len(self.problems)} cannot be read, first {first[0]}: {first[1]}"
        if not self.others:
            return "it holds no files"
        why = f"it holds {told(self.others)}"
        if self.others[".tar"]:
            why += f"; tar files are named by a pattern: --data '{self.root}/*.tar'"
        elif self.others[".parquet"] or self.others[".arrow"]:
            why += f"; data sets of the library datasets are named with hf: --data hf:{self.root}"
        elif self.others[".zip"]:
            why += f"; unpack its zip files, or have them read with --data hf:{self.root}"
        return why


@functools.lru_cache(maxsize=2)
def _unreadable(root: Path, files: tuple[File, ...], most: int) -> dict[str, str]:
    """Which files are no images, and why.

    Both splits of a folder ask; the headers are read again only if a file has changed since.
    """
    problems = {}
    for name, _, _ in files:
        try:
            check_header(root / name, most)
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
            problems[name] = _reason(error)
    return problems


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")
