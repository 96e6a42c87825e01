"""Measuring a checkpoint: the images to measure it on, and the record of its figures."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import genkit
from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.devices import device_text, pick_device, precision_text
from genkit.errors import GenkitError, OptionError
from genkit.evaluation.figures import shown
from genkit.evaluation.images import data_text, evaluation_images, options_of, size_of
from genkit.evaluation.record import KEYS, SCHEMA
from genkit.files import at_home
from genkit.plugin.options import Part
from genkit.settings import choose, settings_of
from genkit.size import NATIVE, Size

if TYPE_CHECKING:
    from genkit.images import Pixels
    from genkit.interfaces import Dataset, Metric, Split
    from genkit.size import Resolution
    from genkit.tokenizer import Tokenizer


def evaluate(
    checkpoint: str | os.PathLike[str] | Tokenizer,
    *,
    data: str | os.PathLike[str] | Dataset | Split | None = None,
    split: str | None = None,
    images: int | None = None,
    resolution: Resolution | None = None,
    batch_size: int = 16,
    metrics: Sequence[str | Mapping[str, Any]] = (),
    exact: bool = False,
    by_class: bool = False,
    device: str | None = None,
    mixed_precision: str = "no",
) -> dict[str, Any]:
    """Measure a checkpoint or a tokenizer; returns the record that `genkit evaluate` prints.

    `data` is a data set name, a folder, or an object with the methods of
    `genkit.interfaces.Dataset` or `Split`, whose images are used unchanged. Without it, a
    checkpoint is measured on the held-out images of its training data. `metrics` are additional
    metrics: names, with options as in `"name?option=value"`, or tables with a name and options.
    The other arguments are the options of the command. A tokenizer is moved to the device.
    """
    return Measurement(
        checkpoint if not isinstance(checkpoint, os.PathLike) else os.fspath(checkpoint),
        os.fspath(data) if isinstance(data, os.PathLike) else data,
        split,
        images,
        resolution,
        batch_size,
        metrics,
        exact,
        by_class,
        device,
        mixed_precision,
    ).record()


class HashedSplit:
    """A split that records which images it returned.

    Images are identified by their pixels: different files may share a name and a size.
    """

    def __init__(self, split: Split) -> None:
        self.split, self.fingerprint, self.problems = split, split.fingerprint, split.problems
        self.channels, self.classes = split.channels, split.classes
        # Height and width of the images returned last.
        self.size = (0, 0)
        self._seen: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        """The image's name in the data set."""
        return self.split.name(index)

    def label(self, index: int) -> int | None:
        """The number of the image's class, if it has one."""
        return self.split.label(index)

    def caption(self, index: int) -> str | None:
        """The image's caption, if it has one."""
        return self.split.caption(index)

    def images(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """The split's images; the hash of each is recorded."""
        pixels = self.split.images(indices, seeds)
        self.size = pixels.shape[1], pixels.shape[2]
        for index, image in zip(indices, pixels, strict=True):
            self._seen[index] = hashlib.sha256(image.tobytes()).digest()
        return pixels

    def hashes(self) -> dict[str, str]:
        """Hashes of the names and of the pixels of all returned images, in any order."""
        names = "\n".join(sorted(self.name(index) for index in self._seen))
        return {
            "files": hashlib.sha256(names.encode()).hexdigest(),
            "pixels": hashlib.sha256(b"".join(sorted(self._seen.values()))).hexdigest(),
        }


class Measurement:
    """A checkpoint or tokenizer and the images to measure it on.

    Creating one does not import torch, so that wrong arguments fail fast.
    """

    def __init__(
        self,
        checkpoint: str | Tokenizer,
        data: str | Dataset | Split | None = None,
        split: str | None = None,
        images: int | None = None,
        resolution: Resolution | None = None,
        batch_size: int = 16,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        exact: bool = False,
        by_class: bool = False,
        device: str | None = None,
        mixed_precision: str = "no",
    ) -> None:
        self.checkpoint, self.images, self.batch_size = checkpoint, images, batch_size
        self.exact, self.by_class = exact, by_class
        self.device, self.mixed_precision = device, mixed_precision
        self.path = checkpoint if isinstance(checkpoint, str) else "a tokenizer in memory"
        self.info = (
            inspect_tokenizer(checkpoint) if isinstance(checkpoint, str) else _info(checkpoint)
        )
        self.metrics = chosen_metrics(metrics)
        self.notes: list[str] = []
        self.part: Part | None = None
        size: tuple[int, int] | None = None
        if data is None or isinstance(data, str):
            size = size_of(self.info, resolution)
            found, self.part, split, self.notes = evaluation_images(
                self.path, self.info, data, size, split
            )
            self.data_text = data_text(self.part)
        else:
            if resolution:
                raise OptionError(
                    "resolution applies to data sets given by name; an object has its own"
                )
            split = split or "all"
            found = data.split(split) if hasattr(data, "split") else data
            self.data_text = type(data).__name__
        native = bool(getattr(found, "native", False))
        if native:
            self.batch_size = 1
        # A sentence on the parts that crops leave out.
        self.cropping = str(getattr(found, "cropping", ""))
        self.dataset = HashedSplit(found)
        if by_class and not self.dataset.classes:
            raise OptionError(f"the images of {self.data_text} have no classes to average by")
        training = self.info["training"] or {}
        # Only training images depend on the run's seed.
        seed = {"seed": training.get("seed", 0)} if split == "train" else {}
        self.protocol: dict[str, Any] = {
            "data": self.part.name if self.part else self.data_text,
            "split": split,
            **seed,
            "resolution": NATIVE if native else size and Size(*size).plain,
            **({"cropped": self.cropping} if self.cropping else {}),
            "asked": images,
            "options": options_of(self.part) if self.part else {},
            "fingerprint": found.fingerprint,
        }

    def record(
        self, progress: Callable[[int, int], object] = lambda done, total: None
    ) -> dict[str, Any]:
        """Measure; returns the figures with everything that says what they were measured on.

        `progress` is called with the images done and their total.
        """
        import torch

        from genkit.checkpoint.model import fingerprint
        from genkit.evaluation import metrics

        device = pick_device(self.device, self.mixed_precision)
        tokenizer = (
            genkit.load(self.info["file"]) if isinstance(self.checkpoint, str) else self.checkpoint
        )
        weights = fingerprint(tokenizer)
        chosen = {name: each.build(tokenizer.channels) for name, each in self.metrics.items()}
        figures = metrics.evaluate(
            tokenizer.to(device),
            self.dataset,
            self.images,
            self.batch_size,
            metrics=chosen,
            exact=self.exact,
            mixed_precision=self.mixed_precision,
            by_class=self.by_class,
            progress=progress,
        )
        self._check(figures)
        describe(figures.get("metrics", {}), self.metrics, chosen)
        training = self.info["training"] or {}
        height, width = self.dataset.size
        return {
            "schema": SCHEMA,
            **figures,
            "protocol": {
                "evaluation": metrics.ARITHMETIC,
                **self.protocol,
                "resolution": self.protocol["resolution"] or Size(height, width).plain,
                "found": figures["images"],
                **self.dataset.hashes(),
            },
            "unreadable": self.dataset.problems,
            "versions": {
                "genkit": genkit.__version__,
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in ("numpy", "pillow")},
                **self._origins(),
            },
            "model": {
                "path": self.path,
                "fingerprint": weights,
                "components": self.info["components"],
                "training": {key: training.get(key) for key in ("step", "seed")},
            },
            "batch_size": 1 if self.exact else self.batch_size,
            "device": device_text(device),
            "precision": precision_text(tokenizer, device, self.mixed_precision),
        }

    def _check(self, figures: Mapping[str, Any]) -> None:
        """Raise `GenkitError` if a figure is NaN or infinite."""
        for key, how in shown(figures).items():
            value = figures.get(key)
            if value is None or math.isfinite(value):
                continue
            if key in figures.get("metrics", {}):
                raise GenkitError(f"the metric {how.label} is {value}, which is not finite")
            raise GenkitError(
                f"'{self.path}' cannot be measured: its reconstructions contain NaN or infinity, "
                "so its training diverged; name an earlier checkpoint or another run"
            )

    def _origins(self) -> dict[str, str]:
        """The versions of the distributions of the data set and of additional metrics."""
        parts = [*self.metrics.values(), *([self.part] if self.part else [])]
        origins = [part.component.origin for part in parts if part.component]
        return {origin.distribution: origin.version for origin in origins}


def describe(
    entries: Mapping[str, dict[str, Any]], parts: Mapping[str, Part], metrics: Mapping[str, Metric]
) -> None:
    """Add the options and the notes of metrics to the `metrics` of a record, after their results.

    Options specific to this machine are left out, such as the path of weights.
    """
    for entry in entries.values():
        name = entry["metric"]
        options = settings_of(parts[name].options, local=False)
        entry["options"] = {**options, **getattr(metrics[name], "details", {})}
        if note := getattr(metrics[name], "note", ""):
            entry["note"] = note


def _info(tokenizer: Tokenizer) -> dict[str, Any]:
    from genkit.checkpoint.model import description

    return description(tokenizer)


def chosen_metrics(metrics: Sequence[str | Mapping[str, Any]]) -> dict[str, Part]:
    """Additional metrics by name. `OptionError` for a repeated name or one that records use."""
    chosen: dict[str, Part] = {}
    for each in metrics:
        part = choose("metric", _table(each) if isinstance(each, str) else each)
        if part.name in chosen:
            raise OptionError(
                f"the metric '{part.name}' is given twice: run one measurement for each"
            )
        if part.name in KEYS:
            raise OptionError(f"records use the name '{part.name}' themselves: rename the metric")
        chosen[part.name] = part
    return chosen


def _table(text: str) -> dict[str, Any]:
    """The table that `NAME?option=value&option=value` describes.

    An option `part.option` belongs to the component that the option `part` chooses.
    """
    name, _, asked = text.partition("?")
    table: dict[str, Any] = {"name": name}
    for key, value in parse_qsl(asked):
        part, _, option = key.replace("-", "_").partition(".")
        value = at_home(value)
        if option:
            inner = table.get(part, {})
            inner = inner if isinstance(inner, dict) else {"name": inner}
            table[part] = {**inner, option: value}
        elif isinstance(table.get(part), dict):
            table[part]["name"] = value
        else:
            table[part] = value
    return table
