"""Sources of images: procedural faces, and folders of image files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from genkit import Component, hookimpl, option


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


@dataclass(frozen=True)
class FolderOptions:
    """Options of a folder of images."""

    location: str = option(
        "", "the folder, whose subfolders are read too, or one image file", local=True
    )
    heldout: float = option(
        0.1,
        "share of the files kept out of training, chosen by a hash of their names",
        minimum=0,
        maximum=0.9,
    )
    heldout_folder: str = option(
        "", "hold out the images of this folder instead, and train on all of the other", local=True
    )
    split_seed: int = option(0, "another number holds other files out", minimum=0)
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
        512, "megabytes of decoded images kept in memory, in each process that reads", minimum=0
    )
    background: tuple[int, ...] = option(
        (255, 255, 255), "colour under transparent pixels", minimum=0, maximum=255
    )

    def __post_init__(self) -> None:
        if not self.heldout:
            raise ValueError("heldout must be above 0: validation needs files kept out of training")
        if self.heldout_folder:
            # A frozen dataclass's own way past its freeze; the folder stays the same from anywhere.
            object.__setattr__(self, "heldout_folder", os.path.abspath(self.heldout_folder))
            places = (self.location, self.heldout_folder)
            one, other = (os.path.join(os.path.realpath(place), "") for place in places)
            if self.location and (one.startswith(other) or other.startswith(one)):
                raise ValueError("heldout_folder must lie outside the training images' folder")
        if len(self.background) != 3:
            raise ValueError(f"the background is a colour of three numbers, not {self.background}")


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
    ]


@hookimpl
def genkit_dataset_for(location: str) -> dict[str, Any] | None:
    return (
        {"name": "folder", "location": os.path.abspath(location)}
        if os.path.exists(location)
        else None
    )
