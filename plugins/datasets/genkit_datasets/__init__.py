"""Data sets: procedural faces, image folders, Hugging Face data sets and tar shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from genkit import Component, hookimpl, option
from genkit.data import MAX_PIXELS
from genkit.files import is_folder


@dataclass(frozen=True)
class FacesOptions:
    """Options of the procedural faces."""

    size: int = option(50_000, "number of faces in the training set", minimum=1)
    heldout: int = option(1_024, "number of held-out faces, the same for every seed", minimum=1)
    heterochromia: float = option(
        0.0, "share of faces whose eyes differ in colour", minimum=0, maximum=1
    )
    pose: float = option(
        1.0, "range of head turn, tilt and shift; 0 for frontal faces", minimum=0, maximum=2
    )
    light: float = option(1.0, "strength of side light; 0 for even light", minimum=0, maximum=2)
    noise: float = option(1.0, "strength of pixel noise", minimum=0, maximum=10)
    label: Literal["none", "hair", "glasses", "mouth", "earrings"] = option(
        "none", "factor used as the class label"
    )


@dataclass(frozen=True)
class FileOptions:
    """Options shared by the data sets of encoded images: split, crops and cache."""

    location: str = option("", "location of the images", local=True)
    heldout: float = option(
        0.1,
        "held-out share of the images, chosen by a hash of their names",
        minimum=0,
        maximum=0.9,
    )
    split_seed: int = option(0, "seed of the choice of held-out images", minimum=0)
    short_side: int = option(
        0,
        "length of the shorter side after resizing, before cropping; 0 uses --resolution",
        minimum=0,
    )
    crops: int = option(
        1,
        "crops per image in evaluation; the first is the centre crop",
        minimum=1,
    )
    flip: bool = option(True, "random horizontal flips of training images")
    cache: int = option(
        512,
        "size in megabytes of the cache of decoded images, shared by workers; images that do not "
        "fit are decoded each time",
        minimum=0,
    )
    channels: int = option(
        0,
        "image channels: 1 for grey, 3 for RGB, 2 and 4 with alpha, or the number of bands; grey "
        "and colour are converted. 0 takes the files' own",
        minimum=0,
        maximum=16,
    )
    bands: tuple[int, ...] = option(
        (0,), "bands of images to read, from 1, in this order; 0 reads all", minimum=0
    )
    range: tuple[float, ...] = option(
        (0.0, 0.0),
        "lowest and highest value in the files, such as 0,4095 for 12 bits; 0,0 takes the range of "
        "the file type, and 0,1 for floats",
    )
    background: tuple[int, ...] = option(
        (255, 255, 255), "background colour of transparent pixels", minimum=0, maximum=255
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "largest number of pixels per image, at 3 bytes of memory each; larger images are not read",
        minimum=1,
        local=True,
    )

    def __post_init__(self) -> None:
        if not self.heldout:
            raise ValueError("heldout must be above 0, because validation needs held-out images")
        if len(self.background) != 3:
            raise ValueError(f"background must be three numbers (RGB), not {self.background}")
        if len(self.range) != 2 or (any(self.range) and self.range[0] >= self.range[1]):
            raise ValueError(f"range must be a lowest and a highest value, not {self.range}")
        if 0 in self.bands and self.bands != (0,):
            raise ValueError("bands are counted from 1")
        if self.chosen_bands and self.channels not in (0, len(self.bands)):
            raise ValueError(
                f"bands chooses {len(self.bands)} channels, and channels {self.channels}: leave "
                "one out"
            )

    @property
    def chosen_bands(self) -> tuple[int, ...]:
        """The bands to read; empty for all."""
        return () if self.bands == (0,) else self.bands

    @property
    def chosen_range(self) -> tuple[float, float] | None:
        """The range of values, if given."""
        return (self.range[0], self.range[1]) if any(self.range) else None

    def check_share(self, instead: str) -> None:
        """`ValueError` if the option `instead` is combined with a held-out share."""
        if getattr(self, instead) and (self.heldout, self.split_seed) != (0.1, 0):
            raise ValueError(
                f"heldout and split_seed have no effect with {instead}: leave them at 0.1 and 0"
            )


@dataclass(frozen=True)
class FolderOptions(FileOptions):
    """Options of a folder of images."""

    location: str = option(
        "", "image folder, read with its subfolders, or a single image file", local=True
    )
    heldout_folder: str = option(
        "", "folder of held-out images, used instead of a held-out share", local=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_folder")
        if self.location:
            object.__setattr__(self, "location", _absolute(self.location))
        if self.heldout_folder:
            # `object.__setattr__` works although the dataclass is frozen. An absolute path holds
            # from any working directory.
            object.__setattr__(self, "heldout_folder", _absolute(self.heldout_folder))
            places = (self.location, self.heldout_folder)
            one, other = (os.path.join(os.path.realpath(place), "") for place in places)
            if self.location and (one.startswith(other) or other.startswith(one)):
                raise ValueError("heldout_folder must be outside the folder of training images")


@dataclass(frozen=True)
class HFOptions(FileOptions):
    """Options of data sets read by the library `datasets`.

    Options that depend on the location are local, like the location itself.
    """

    location: str = option(
        "",
        "data set name on the Hugging Face hub, or a local folder or file",
        local=True,
    )
    subset: str = option("", "name of the subset (configuration)", local=True)
    split: str = option("train", "split used for training", local=True)
    heldout_split: str = option(
        "", "split of held-out images, used instead of a held-out share", local=True
    )
    column: str = option("", "image column; needed if there are several", local=True)
    label: str = option(
        "", "label column; by default the only ClassLabel column, if any", local=True
    )
    caption: str = option("", "caption column", local=True)
    revision: str = option("", "tag, branch or commit on the hub", local=True)
    size: int = option(
        0, "maximum number of images, from the start of each split; 0 for all", minimum=0
    )
    streaming: bool = option(
        False, "download only the first --data.size images and keep them, encoded, in memory"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_split")
        if self.streaming and not self.size:
            raise ValueError("streaming needs a size: the number of images to keep in memory")
        if self.heldout_split and self.heldout_split == self.split:
            raise ValueError("heldout_split must differ from split")


@dataclass(frozen=True)
class ShardsOptions(FileOptions):
    """Options of tar files."""

    location: str = option(
        "",
        "tar files: a{00..99}.tar or a*.tar, or several such patterns joined by ::",
        local=True,
    )
    heldout_shards: str = option(
        "", "tar files of held-out images, used instead of a held-out share", local=True
    )
    endings: str = option(
        "",
        "file extensions to read if samples hold several images, counted from the first dot: "
        "input.png, or jpg,png",
        local=True,
    )
    label: str = option(
        "label", "key of the label in a sample's .json; a .cls takes precedence", local=True
    )
    caption: str = option(
        "caption", "key of the caption in a sample's .json; a .txt takes precedence", local=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("heldout_shards")
        # `object.__setattr__` works although the dataclass is frozen.
        object.__setattr__(self, "heldout_shards", _shards(self.heldout_shards))


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "dataset",
            "faces",
            "genkit_datasets.faces:Faces",
            FacesOptions,
            "procedural faces drawn from known factors",
        ),
        Component(
            "dataset",
            "folder",
            "genkit_datasets.folder:Folder",
            FolderOptions,
            "image files of a folder, or a single image file",
        ),
        Component(
            "dataset",
            "hf",
            "genkit_datasets.hf:HF",
            HFOptions,
            "Hugging Face data sets, from the hub or local: --data hf:NAME_OR_PATH",
            requires="genkit-vq[datasets]",
        ),
        Component(
            "dataset",
            "shards",
            "genkit_datasets.shards:Shards",
            ShardsOptions,
            'webdataset tar files: --data "a{00..99}.tar"',
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
        # Names on the hub do not begin like this. A local path must never be looked up there.
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


# webdataset's prefix of a shell command that prints a tar file. Such locations are refused.
PIPE = "pipe:"
# Compressed files are refused later, with a clearer error than that of an unknown name.
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def _with_settings(text: str) -> tuple[str, dict[str, str]]:
    """The path and the options of `PATH?split=test&column=img`.

    This lets commands without data options of their own pass options within the location.
    """
    place, _, asked = text.partition("?")
    if os.path.exists(text):
        return text, {}
    return place, {key.replace("-", "_"): value for key, value in parse_qsl(asked)}


def _shards(patterns: str) -> str:
    """The patterns joined by ::, as absolute paths."""
    return "::".join(
        pattern if "://" in pattern or pattern.startswith(PIPE) else _absolute(pattern)
        for pattern in patterns.split("::")
        if pattern
    )


def _absolute(place: str) -> str:
    try:
        return os.path.abspath(Path(place).expanduser())
    except RuntimeError:  # `~name` of a user that does not exist.
        return os.path.abspath(place)
