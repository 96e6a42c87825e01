"""The images that commands using a checkpoint look at."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genkit.errors import CheckpointError, OptionError
from genkit.files import CONFIG
from genkit.plugin.options import Part, part
from genkit.plugin.registry import registry
from genkit.run.config import read_config
from genkit.settings import choose, merge, settings_of, typed_data_table, without_local

if TYPE_CHECKING:
    from genkit.interfaces import Dataset, Split

# Pixels on a side, beyond which no array of images can be made.
_LARGEST = 2**16


class Chosen(NamedTuple):
    """Images to evaluate on: a split, the part that its data set was built from, and notes.

    The notes are sentences that a user should read before the figures.
    """

    images: Split
    part: Part
    split: str
    notes: list[str]


@dataclass(frozen=True)
class _Data:
    data: Part = part("dataset", "", "a data set's name, or a folder or what else one reads")


def resolution_of(info: Mapping[str, Any], given: int | None) -> int:
    """The resolution asked for, or else the one that the checkpoint was trained at."""
    resolution = given or (info.get("training") or {}).get("resolution")
    if not isinstance(resolution, int):
        raise CheckpointError(
            "the checkpoint does not say what it was trained at: give --resolution"
        )
    if resolution > _LARGEST:
        raise OptionError(f"--resolution can be at most {_LARGEST}, not {resolution}.")
    stride = info["levels"][-1]["stride"]
    if resolution < stride or resolution % stride:
        raise OptionError(
            f"--resolution {resolution} is no multiple of the coarsest level's stride, {stride}."
        )
    return resolution


def all_images(location: str, size: tuple[int, int]) -> Split:
    """Every image of a data set's name or a folder, at a height and width."""
    dataset: Dataset = _part(typed_data_table(location)).build(size, 0)
    return dataset.split("all")


def evaluation_images(
    checkpoint: str,
    info: Mapping[str, Any],
    location: str | None,
    size: tuple[int, int],
    split: str | None = None,
) -> Chosen:
    """The images to evaluate on, the data set that is chosen and the split.

    Without a location these are the data that the checkpoint was trained on. Without a split, a
    data set that training drew from, known by its fingerprint, gives its held-out images, and so
    does one whose images have changed since, with a note. Any other gives all of its images.
    """
    training = info.get("training") or {}
    trained_on = _told(training.get("data") or {})
    if (config := Path(checkpoint) / CONFIG).is_file():
        # A model file does not say where on this machine its training images lie.
        # The run's config does.
        trained_on = read_config(config).get("data", trained_on)
    seed = training.get("seed", 0)
    if not isinstance(trained_on, Mapping) or type(seed) is not int or seed < 0:
        raise CheckpointError(
            f"what '{checkpoint}' and its run's config say of the images trained on is damaged"
        )
    if location is None and "name" not in trained_on:
        raise CheckpointError("the checkpoint does not say what it was trained on: give --data")
    table = typed_data_table(location) if location is not None else dict(trained_on)
    chosen, own, notes = _part(table), False, []
    dataset: Dataset | None = None
    if table["name"] == trained_on.get("name"):
        with suppress(OptionError):  # The folder that the run held out is none to hold it out of.
            chosen = _part(merge(_Data, {"data": trained_on}, {"data": table})["data"])
            # The training split of generated images depends on the run's seed.
            dataset = chosen.build(size, seed)
            own = dataset.fingerprint == training.get("fingerprint")
        if not own and _part(trained_on) == chosen:
            if split is None:
                notes.append(
                    f"The images of {data_text(chosen)} have changed since '{checkpoint}' was "
                    "trained. The figures are of the images that are held out now; an image that "
                    "was renamed may have been trained on."
                )
            own = True
        elif not own and location is not None:
            # Other images, cropped as in training; what names a place on this machine goes.
            shared = settings_of(_Data(_part(trained_on)), local=False)
            chosen, dataset = _part(merge(_Data, shared, {"data": table})["data"]), None
    split = split or ("heldout" if own else "all")
    dataset = dataset or chosen.build(size, seed)
    return Chosen(dataset.split(split), chosen, split, notes)


def options_of(chosen: Part) -> dict[str, Any]:
    """The options of a data set, but for those that mean something on this machine only."""
    table: dict[str, Any] = settings_of(_Data(chosen), local=False)["data"]
    return {key: value for key, value in table.items() if key != "name"}


def _told(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a model file says of its training data, but for places, which no file may choose."""
    name = data.get("name")
    if name not in registry().names("dataset"):
        return dict(data)
    return without_local(registry().component("dataset", str(name)).config, data)


def _part(table: Mapping[str, Any]) -> Part:
    return choose("dataset", table)


def data_text(chosen: Part) -> str:
    """How a data set is called: by the last part of where it lies, if it has such an option."""
    return Path(str(getattr(chosen.options, "location", ""))).name or chosen.name
