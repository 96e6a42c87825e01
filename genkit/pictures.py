"""Files of single images in their originals' units: PNG, TIFF or NumPy arrays."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genkit.errors import OptionError
from genkit.files import replacing
from genkit.interfaces import Values
from genkit.plugin.installing import to_install
from genkit.tokens import IMAGE_FORMATS

Picture = np.ndarray[Any, Any]


def chosen_format(asked: str | None, channels: int, values: Values) -> str:
    """The format of images' files: the one asked for, or the first that holds such images.

    `OptionError` for a format that does not hold them, or whose library is not installed.
    """
    if asked is not None and asked not in IMAGE_FORMATS:
        raise OptionError(f"format can be {', '.join(IMAGE_FORMATS)}, not {asked!r}")
    tiff = importlib.util.find_spec("tifffile") is not None
    in_png = channels <= 4 and (
        values.type == "uint8" or (values.type == "uint16" and channels == 1)
    )
    if asked == "png" and not in_png:
        raise OptionError(
            f"PNG does not hold images with {channels} channels of {values.type}: give --format "
            "tiff or npy"
        )
    if asked == "tiff" and not tiff:
        raise OptionError(
            f"--format tiff needs the package tifffile: {to_install('genkit-vq[tiff]')}, or give "
            "--format npy"
        )
    return asked or ("png" if in_png else "tiff" if tiff else "npy")


def save_picture(path: Path, picture: Picture) -> None:
    """Write an image `[H, W, C]` atomically, in the format that the path's ending says."""
    flat = picture[..., 0] if picture.shape[-1] == 1 else picture
    with replacing(path, lasting=False) as temporary, temporary.open("wb") as file:
        if path.suffix == ".png":
            Image.fromarray(flat).save(file, format="PNG")
        elif path.suffix == ".tiff":
            channels = picture.shape[-1]
            _tifffile().imwrite(
                file,
                flat,
                photometric="rgb" if channels in (3, 4) else "minisblack",
                planarconfig=None if channels == 1 else "contig",
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                metadata=None,
            )
        else:
            np.save(file, picture)


def load_picture(path: Path) -> Picture:
    """The image `[H, W, C]` in a file of `save_picture`."""
    if path.suffix == ".npy":
        picture = np.load(path, allow_pickle=False)
    elif path.suffix == ".tiff":
        picture = _tifffile().imread(path)
    else:
        with Image.open(path) as file:
            picture = np.asarray(file)
    return picture if picture.ndim == 3 else picture[..., None]


def _tifffile() -> Any:
    return importlib.import_module("tifffile")
