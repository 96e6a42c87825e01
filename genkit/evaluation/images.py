"""The images that commands measure, encode or reconstruct with a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genkit.errors import CheckpointError, DataError, OptionError
from genkit.files import CONFIG
from genkit.plugin.options import Part, part
from genkit.plugin.registry import registry
from genkit.run.toml import read_config
from genkit.settings import choose, merge, settings_of, typed_data_table, without_local
from genkit.size import NATIVE, Size, parsed_size

if TYPE_CHECKING:
    from genkit.interfaces import Dataset, Split

_log = logging.getLogger(__name__)
# The ranges of 16-bit images and of floats that state none.
_WHOLE = ([0, 65535], [0, 1])
# The largest height and width in pixels. Arrays of larger images cannot be allocated.
_LARGEST = 2**16


class Chosen(NamedTuple):
    """Images to evaluate on: a split, the part that its data set was built from, and notes.

    The notes are sentences to read before the figures.
    """

    images: Split
    part: Part
    split: str
    notes: list[str]


@dataclass(frozen=True)
class _Data:
    data: Part = part(
        "dataset",
        "",
        "data set name, folder, or other location that a data set plugin recognises",
    )


def size_of(info: Mapping[str, Any], given: Any = None) -> tuple[int, int] | None:
    """`resolution_of`, or None for the images' native sizes."""
    return None if given == NATIVE else resolution_of(info, given)


def resolution_of(info: Mapping[str, Any], given: Any = None) -> tuple[int, int]:
    """Height and width: the given resolution, or else the checkpoint's training resolution."""
    recorded = Size.of((info.get("training") or {}).get("resolution"))
    size = recorded if given is None else parsed_size(given)
    if size is None:
        raise CheckpointError(
            "the checkpoint does not record its training resolution: give --resolution"
        )
    if max(size.pair) > _LARGEST:
        raise OptionError(f"--resolution can be at most {_LARGEST}, not {size}.")
    stride = info["levels"][-1]["stride"]
    if any(side < stride or side % stride for side in size.pair):
        raise OptionError(
            f"--resolution {size} is not a multiple of the coarsest level's stride, {stride}."
        )
    return size.pair


def all_images(
    location: str,
    size: tuple[int, int] | None,
    split: str = "all",
    once: bool = False,
    model: Mapping[str, Any] | None = None,
) -> Split:
    """The images of a data set, given by name or location, at a height and width or as they are.

    With `once`, each image will be read only once: a data set with an option `cache` caches none,
    unless the location sets the option. Given the description of a `model`, they have the channels
    and the range of values that it takes.
    """
    table = typed_data_table(location)
    if model:
        table = _as_the_model(table, model)
    chosen = _part(table)
    if once and "cache" not in table and hasattr(chosen.options, "cache"):
        chosen = _part({**table, "cache": 0})
    return built(chosen, size, 0, model).split(split)


def built(
    chosen: Part, size: tuple[int, int] | None, seed: int, model: Mapping[str, Any] | None
) -> Dataset:
    """A data set; `DataError` if the model cannot take its images.

    A data set whose images have no size of their own gets the model's training size for None.
    """
    component = chosen.component
    if size is None and model and component and not getattr(component.load(), "any_size", False):
        size = resolution_of(model)
    dataset: Dataset = chosen.build(size, seed)
    _log.debug("opened the data set %s, '%s'", chosen.name, data_text(chosen))
    takes = (model or {}).get("channels", dataset.channels)
    if dataset.channels != takes:
        raise DataError(
            f"the images of {data_text(chosen)} have {dataset.channels} channels, and the model "
            f"takes {takes}"
        )
    return dataset


def _as_the_model(table: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data set, with the channels and the range of a model's own images.

    A location that sets one of them, or the bands to read, keeps it.
    """
    config = registry().component("dataset", table["name"]).config
    options = {field.name for field in dataclasses.fields(config)}
    values = (model.get("training") or {}).get("values") or {}
    span = values.get("range")
    # The range of a whole type is no unit: images of other types have their own.
    wanted = {"channels": model.get("channels"), "range": None if span in _WHOLE else span}
    if "bands" in table:
        del wanted["channels"]
    known = {name: value for name, value in wanted.items() if value and name in options}
    return {**known, **table}


def evaluation_images(
    checkpoint: str,
    info: Mapping[str, Any],
    location: str | None,
    size: tuple[int, int] | None,
    split: str | None = None,
) -> Chosen:
    """The images to evaluate on, with their data set and split.

    Without a location, the data set is the checkpoint's training data. Without a split, training
    data give their held-out images and any other data set gives all of its images. A fingerprint
    identifies training data. If their images have changed since training, a note says so.
    """
    training = info.get("training") or {}
    trained_on = _recorded(training.get("data") or {})
    if (config := Path(checkpoint) / CONFIG).is_file():
        # A model file holds no local paths of its training images. The run's config does.
        trained_on = read_config(config).get("data", trained_on)
    seed = training.get("seed", 0)
    if not isinstance(trained_on, Mapping) or type(seed) is not int or seed < 0:
        raise CheckpointError(
            f"the training data recorded in '{checkpoint}' and its run's config are damaged"
        )
    if location is None and "name" not in trained_on:
        raise CheckpointError("the checkpoint does not record its training data: give --data")
    table = typed_data_table(location) if location is not None else dict(trained_on)
    chosen, own, notes = _part(table), False, []
    dataset: Dataset | None = None
    if table["name"] == trained_on.get("name"):
        # `location` may be the held-out folder itself; then the training options do not apply.
        with suppress(OptionError):
            chosen = _part(merge(_Data, {"data": trained_on}, {"data": table})["data"])
            # The training split of generated images depends on the run's seed.
            dataset = built(chosen, size, seed, info)
            own = dataset.fingerprint == training.get("fingerprint")
        if not own and _part(trained_on) == chosen:
            if split is None:
                notes.append(
                    f"The images of {data_text(chosen)} have changed since '{checkpoint}' was "
                    "trained. The figures are of the images that are held out now; a renamed image "
                    "may have been a training image."
                )
            own = True
        elif not own and location is not None:
            # Crop other images as in training: keep the training options except local paths.
            shared = settings_of(_Data(_part(trained_on)), local=False)
            table = _as_the_model(table, info)
            chosen, dataset = _part(merge(_Data, shared, {"data": table})["data"]), None
    elif location is not None:
        chosen = _part(_as_the_model(table, info))
    split = split or ("heldout" if own else "all")
    dataset = dataset or built(chosen, size, seed, info)
    return Chosen(dataset.split(split), chosen, split, notes)


def options_of(chosen: Part) -> dict[str, Any]:
    """The options of a data set, without options specific to this machine."""
    table: dict[str, Any] = settings_of(_Data(chosen), local=False)["data"]
    return {key: value for key, value in table.items() if key != "name"}


def _recorded(data: Mapping[str, Any]) -> dict[str, Any]:
    """A model file's training data without local paths: a file from elsewhere may not set those."""
    name = data.get("name")
    if name not in registry().names("dataset"):
        return dict(data)
    return without_local(registry().component("dataset", str(name)).config, data)


def _part(table: Mapping[str, Any]) -> Part:
    return choose("dataset", table)


def data_text(chosen: Part) -> str:
    """A data set's short name: the last part of its location, or else the data set's own name."""
    return Path(str(getattr(chosen.options, "location", ""))).name or chosen.name
