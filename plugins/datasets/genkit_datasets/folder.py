"""Image files of a folder."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from PIL import Image

from genkit.errors import DataError
from genkit.files import is_folder
from genkit_datasets import FolderOptions
from genkit_datasets.crops import Crops, printable
from genkit_datasets.decoding import opened, read_rgb
from genkit_datasets.split import files_of

__all__ = ["Folder", "read_rgb"]


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
        names = sorted(_image_names(self.root))
        if not is_folder(self.root):
            self.root, names = self.root.parent, [self.root.name]
        sizes = {name: size for name in names if (size := self._size(name)) is not None}
        readable = list(sizes)
        if not readable:
            first = next(iter(self.problems.items()), None)
            detail = (
                f"{len(self.problems)} cannot be read, first {first[0]}: {first[1]}"
                if first
                else "it holds none"
            )
            raise DataError(f"no image can be read in '{location}': {detail}")
        # Names alone do not tell one numbered folder from another; sizes nearly always do.
        listed = "\n".join(f"{printable(name)}:{size}" for name, size in sizes.items())
        # Without the folder held out, nobody shall take a share of what was trained on for it.
        kind = "folder-whole:" if options.heldout_folder else "folder:"
        self.fingerprint = kind + hashlib.sha256(listed.encode()).hexdigest()
        whole = split == "all" or options.heldout_folder
        self.take(readable if whole else files_of(split, readable, printable, options))
        self.names = self.files

    def file_name(self, file: str) -> str:
        """The file's path below the folder."""
        return printable(file)

    def encoded(self, file: str) -> Path:
        """The file."""
        return self.root / file

    def _size(self, name: str) -> int | None:
        """The bytes of a file whose header can be read."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # What is odd about a file that can be read.
                # Pillow only warns of images that take gigabytes once decoded.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with opened(self.root / name):
                    return (self.root / name).stat().st_size
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
            self.problems[printable(name)] = f"{type(error).__name__}: {error}"
            return None


def _image_names(root: Path) -> list[str]:
    Image.init()
    known = set(Image.registered_extensions())
    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # A link may lead back to where it stands.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in names
            if os.path.splitext(name)[1].lower() in known
        ]
    return found
