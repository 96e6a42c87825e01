"""Sources of images: procedural faces, folders of image files, and what others gather them in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from genkit import Component, hookimpl, option
from genkit.files import is_folder

# The largest image that Pillow reads without a warning.
MAX_PIXELS = 89_478_485


@dataclass(frozen=True)
class FacesOptions:
    """Options of the procedural faces."""

    size: int = option(50_000, "different faces in the training set", minimum=1)
    heldout: int = option(1_024, "faces in the held-out set, drawn by no training seed", minimum=1)
    heterochromia: float = option(
        0.0, "share of faces whose eyes differ in colour", minimum=0, maximum=1
    )
    pose: float = option(
        1.0, "how much heads turn, tilt and move; 0 keeps them still", minimum=0, maximum=2
    )
    light: float = option(1.0, "how uneven the light is; 0 lights evenly", minimum=0, maximum=2)
    noise: float = option(1.0, "how much noise lies over the pixels", minimum=0, maximum=10)
    label: Literal["none", "hair", "glasses", "mouth", "earrings"] = option(
        "none", "factor whose value is a face's label"
    )


@dataclass(frozen=True)
class FileOptions:
    """Options of every source of encoded images: how they are split, cropped and kept."""

    location: str = option("", "where the images lie", local=True)
    heldout: float = option(
        0.1,
        "share of the images kept out of training, chosen by a hash of their names",
        minimum=0,
        maximum=0.9,
    )
    split_seed: int = option(0, "another number holds other images out", minimum=0)
    short_side: int = option(
        0,
        "pixels that the shorter side is resized to before cropping; 0 takes --resolution",
        minimum=0,
    )
    crops: int = option(
        1,
        "crops that each image outside training is looked at in, the first in the middle",
        minimum=1,
    )
    flip: bool = option(True, "mirror half of the training images")
    cache: int = option(
        512,
        "megabytes of decoded images kept in memory, which workers share; what does not fit is "
        "decoded each time",
        minimum=0,
    )
    background: tuple[int, ...] = option(
        (255, 255, 255), "colour under transparent pixels", minimum=0, maximum=255
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "pixels of the largest image that is read; each takes 3 bytes of memory or more",
        minimum=1,
        local=True,
    )

    def __post_init__(self) -> None:
        if not self.heldout:
            raise ValueError("heldout must be above 0: validation needs images kept out")
        if len(self.background) != 3:
            raise ValueError(f"the background is a colour of three numbers, not {self.background}")

    def check_share(self, instead: str) -> None:
        """`ValueError` if a share of the images is chosen although others are held out."""
        if getattr(self, instead) and (self.heldout, self.split_seed) != (0.1, 0):
            raise ValueError(
                f"with {instead}, heldout and split_seed would do nothing: leave them at 0.1 and 0"
            )


@dataclass(frozen=True)
class FolderOptions(FileOptions):
    """Options of a folder of images."""

    location: str = option(
        "", "the folder, whose subfolders are read too, or one image file", local=True
    )
    heldout_folder: str = option(
        "", "hold out the images of this folder instead, and train on all of the other", local=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_folder")
        if self.location:
            object.__setattr__(self, "location", _absolute(self.location))
        if self.heldout_folder:
            # A frozen dataclass's own way past its freeze; the folder stays the same from anywhere.
            object.__setattr__(self, "heldout_folder", _absolute(self.heldout_folder))
            places = (self.location, self.heldout_folder)
            one, other = (os.path.join(os.path.realpath(place), "") for place in places)
            if self.location and (one.startswith(other) or other.startswith(one)):
                raise ValueError("heldout_folder must lie outside the training images' folder")


@dataclass(frozen=True)
class HFOptions(FileOptions):
    """Options of what the library `datasets` reads.

    What only means something together with the location is as local as that.
    """

    location: str = option(
        "",
        "a name on the hub, which is fetched, or a folder or file of this library's formats",
        local=True,
    )
    subset: str = option("", "which of several subsets, also called configurations", local=True)
    split: str = option("train", "the split to take", local=True)
    heldout_split: str = option(
        "", "hold out this split instead, and train on all of the other", local=True
    )
    column: str = option("", "the column of the images, if there are several", local=True)
    label: str = option(
        "", "column of the labels; by default the only ClassLabel column, if any", local=True
    )
    caption: str = option("", "column of the captions", local=True)
    revision: str = option("", "the hub's tag, branch or commit to take", local=True)
    size: int = option(
        0, "images to take, from the start of each split; 0 takes all of them", minimum=0
    )
    streaming: bool = option(
        False, "fetch nothing but these first --data.size images, and keep them encoded in memory"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_split")
        if self.streaming and not self.size:
            raise ValueError("streaming needs a size: how many images to fetch and keep in memory")
        if self.heldout_split and self.heldout_split == self.split:
            raise ValueError("heldout_split must be another split than the training images'")


@dataclass(frozen=True)
class ShardsOptions(FileOptions):
    """Options of tar files."""

    location: str = option(
        "",
        "the tar files: a{00..99}.tar or a*.tar, or several such with :: between them",
        local=True,
    )
    heldout_shards: str = option(
        "", "hold out the images of these tar files instead, and train on all others", local=True
    )
    endings: str = option(
        "",
        "which images to take of samples that hold several, by what follows the first dot of "
        "their names: input.png, or jpg,png",
        local=True,
    )
    label: str = option(
        "label", "key of the label in a sample's .json, if it has no .cls", local=True
    )
    caption: str = option(
        "caption", "key of the caption in a sample's .json, if it has no .txt", local=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_shards")
        # As above.
        object.__setattr__(self, "heldout_shards", _shards(self.heldout_shards))


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "dataset",
            "faces",
            "genkit_datasets.faces:Faces",
            FacesOptions,
            "faces drawn from known factors",
        ),
        Component(
            "dataset",
            "folder",
            "genkit_datasets.folder:Folder",
            FolderOptions,
            "image files of a folder, or a single one",
        ),
        Component(
            "dataset",
            "hf",
            "genkit_datasets.hf:HF",
            HFOptions,
            "what the library datasets reads, from the hub or from here: --data hf:NAME_OR_PATH",
            requires="genkit-vq[datasets]",
        ),
        Component(
            "dataset",
            "shards",
            "genkit_datasets.shards:Shards",
            ShardsOptions,
            'images in tar files, as webdataset writes them: --data "a{00..99}.tar"',
            requires="genkit-vq[webdataset]",
        ),
    ]


@hookimpl
def genkit_settings_for(kind: str, name: str) -> dict[str, Any] | None:
    return _settings_at(name) if kind == "dataset" else None


def _settings_at(location: str) -> dict[str, Any] | None:
    """The settings of the data set that reads a location, or None."""
    if location.startswith("hf:"):
        place, settings = _with_settings(location.removeprefix("hf:"))
        # No name on the hub begins so, and what lies here is never looked for there.
        if os.path.exists(place) or (place.startswith(("/", ".", "~")) and place[:2] != "//"):
            place = _absolute(place)
        return {**settings, "name": "hf", "location": place}
    place, settings = _with_settings(location)
    folder = is_folder(_absolute(place))
    if not folder and (place.rstrip("}").endswith(_TAR) or place.startswith(PIPE)):
        return {**settings, "name": "shards", "location": _shards(place)}
    if os.path.exists(_absolute(place)):
        return {**settings, "name": "folder", "location": _absolute(place)}
    return None


# webdataset's prefix of a command that prints a tar file; such locations are refused.
PIPE = "pipe:"
# The compressed ones so that they are told from names of nothing.
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def _with_settings(text: str) -> tuple[str, dict[str, str]]:
    """The place and the options of `PLACE?split=test&column=img`.

    So a location tells all that is needed, where a command takes no other options of data.
    """
    place, _, asked = text.partition("?")
    if os.path.exists(text):
        return text, {}
    return place, {key.replace("-", "_"): value for key, value in parse_qsl(asked)}


def _shards(patterns: str) -> str:
    """The patterns with :: between them, as they are understood from any folder."""
    return "::".join(
        pattern if "://" in pattern or pattern.startswith(PIPE) else _absolute(pattern)
        for pattern in patterns.split("::")
        if pattern
    )


def _absolute(place: str) -> str:
    try:
        return os.path.abspath(Path(place).expanduser())
    except RuntimeError:  # There is no such user, whose home it would begin with.
        return os.path.abspath(place)
