"""Two sets of images compared by the features of a network: FD, KID, precision, recall and kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.distributed import all_sum, process, processes
from genkit.errors import DataError, OptionError
from genkit.evaluation.estimators import (
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
)
from genkit.evaluation.figures import Shown
from genkit.evaluation.sets import (
    ImageSet,
    Reference,
    Statistics,
    read_reference,
    save_statistics,
)
from genkit.files import check_place
from genkit.images import Pixels, as_rgb, rgb_note, to_uint8
from genkit.interfaces import Features
from genkit.models import RGB
from genkit.ops.precision import finest

ALL = "all"
# The output of the network that each figure is computed from.
OUTPUT = {
    "fd": "features",
    "kid": "features",
    "precision": "features",
    "recall": "features",
    "sfid": "spatial",
    "is": "logits",
}
_FRECHET = ("fd", "sfid")
# How many images of each set are looked at at a time, in a reference file with images.
_BATCH = 32


class Distances:
    """The distances of made images from real ones. Each image passes the network once.

    Images are `[B, C, H, W]` in [-1, 1], and are rounded to uint8 first. The real images come from
    `add_real` or from a `reference` file. `figures` are keys of `OUTPUT`, or `all`: every figure
    that the features and the number of images allow. It is a `genkit.interfaces.Metric` too: the
    made images are then reconstructions.
    """

    label, better, decimals = "distance", "lower", 4

    def __init__(
        self,
        features: Features,
        figures: Sequence[str] = (ALL,),
        reference: str = "",
        save: str = "",
        neighbours: int = 3,
        splits: int = 1,
    ) -> None:
        self.features, self.neighbours, self.splits = features.eval(), neighbours, splits
        self.asked = [name for name in OUTPUT if name in figures]
        for name in self.asked:
            if OUTPUT[name] not in features.widths:
                raise OptionError(
                    f"the features of {features.label} have no {OUTPUT[name]}, which the figure "
                    f"{name} needs: leave it out of figures"
                )
        wanted = OUTPUT if ALL in figures else self.asked
        self.figures = [name for name in wanted if OUTPUT[name] in features.widths]
        # Lists, because all processes must exchange the outputs in the same order.
        moments = list(dict.fromkeys(OUTPUT[name] for name in self.figures if name in _FRECHET))
        rows = list(dict.fromkeys(OUTPUT[name] for name in self.figures if name not in _FRECHET))
        self._made = ImageSet(features.widths, moments, rows)
        # The Inception score is of the made images alone.
        self._real = ImageSet(features.widths, moments, [x for x in rows if x != OUTPUT["is"]])
        self._paired, self._left_out = False, dict[str, str]()
        self._device, self._channels = torch.device("cpu"), RGB
        if reference and save:
            raise OptionError("a reference file takes the place of the images: save writes none")
        self._given = self._read(Path(reference)) if reference else None
        self._save = Path(save) if save else None
        if self._save:
            check_place(self._save)
        self._counts: dict[str, Any] = {}
        self.parts = self._parts()

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch of images and their reconstructions."""
        self._paired = not self.has_reference
        self.add_real(images)
        self.add(reconstructions)

    def add(self, images: Tensor) -> None:
        """Add made images: reconstructions or samples."""
        self._add(self._made, images)

    def add_real(self, images: Tensor) -> None:
        """Add images to compare with. If there is a reference file, it takes their place."""
        if not self.has_reference:
            self._add(self._real, images)

    @property
    def has_reference(self) -> bool:
        """Whether a file takes the place of the real images, and no image need be added."""
        return self._given is not None

    def result(self) -> dict[str, float | None]:
        """The figures over the images of all processes, by name. Every process calls it."""
        made = self._made.total()
        # A process without images does not know whether the others have pairs.
        self._paired = bool(all_sum(torch.tensor(float(self._paired))))
        real = self._reference() if self._given else self._real.total()
        self._counts = {
            "paired": "yes" if self._paired else "no",
            "images": made.images,
            "reference_images": "not recorded" if real.images is None else real.images,
            "reference": real.hash[:16],
        }
        if self._save and process() == 0:
            save_statistics(self._save, real, self._extractor())
        self._left_out = {
            name: reason for name in self.figures if (reason := self._missing(name, real, made))
        }
        for name, reason in self._left_out.items():
            if name in self.asked:
                raise OptionError(f"{self.parts[name].label} cannot be computed: {reason}")
        return self._computed(real, made)

    @property
    def details(self) -> dict[str, Any]:
        """Facts for the record on the features and, after `result`, on the two sets of images."""
        return {**self.features.details, "rounding": "uint8", **self._counts}

    @property
    def note(self) -> str:
        """A sentence on the features and the two sets of images, after `result`."""
        kept = [self.parts[name].label for name in self.figures if name not in self._left_out]
        text = (
            f"{', '.join(kept) or 'No distance'} of {self._counts['images']} images from "
            f"{self._counts['reference_images']}, by features of {self.features.label}"
        )
        reasons: dict[str, list[str]] = {}
        for name, reason in self._left_out.items():
            reasons.setdefault(reason, []).append(self.parts[name].label)
        for reason, labels in reasons.items():
            text += f"; without {', '.join(labels)}: {reason}"
        return f"{text}. {rgb_note(self.features.label, self._channels)}".rstrip()

    def save_real(self, path: Path) -> None:
        """Write the statistics of the real images to a file. Every process calls it."""
        real = self._real.total()
        if process() == 0:
            save_statistics(path, real, self._extractor())

    def _add(self, images_of: ImageSet, images: Tensor) -> None:
        self._device = images.device
        self._add_pixels(images_of, to_uint8(images))

    def _add_pixels(self, images_of: ImageSet, pixels: Pixels) -> None:
        self._channels = pixels.shape[-1]
        batch = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        with torch.no_grad():
            outputs = self.features.to(self._device)(as_rgb(batch))
        images_of.add(pixels, outputs)

    def _computed(self, real: Statistics, made: Statistics) -> dict[str, float | None]:
        doubles = finest(self._device) == torch.float64
        device = self._device if doubles else torch.device("cpu")
        figures: dict[str, float | None] = {}
        for name in self.figures:
            output = OUTPUT[name]
            if name in self._left_out:
                continue
            if name in _FRECHET:
                figures[name] = frechet(*real.moments[output], *made.moments[output])
            elif name == "is":
                figures[name] = inception_score(made.rows[output][[*made.order]], self.splits)
            elif name == "kid":
                pair = real.rows[output], made.rows[output]
                figures |= zip(
                    ("kid", "kid_error"), kernel_distance(*pair, self._paired, device), strict=True
                )
        both = [name for name in ("precision", "recall") if name in self.figures]
        if both and not self._left_out.keys() & {"precision", "recall"}:
            pair = real.rows["features"], made.rows["features"]
            found = precision_recall(*pair, self.neighbours, device)
            shares = dict(zip(("precision", "recall"), found, strict=True))
            figures |= {name: shares[name] for name in both}
        return figures

    def _missing(self, name: str, real: Statistics, made: Statistics) -> str:
        """Why a figure cannot be computed, or an empty text."""
        output, count = OUTPUT[name], made.images or 0
        if name in _FRECHET:
            if output not in real.moments:
                return "the reference file has no mean and covariance for it"
            width = self.features.widths[output]
            # ADM's files do not say of how many images they are.
            count = count if real.images is None else min(count, real.images)
            few = f"{width} features need at least {width} images, not {count}"
            return few if count < width else ""
        if name != "is":
            if output not in real.rows:
                return "the reference file has no features of single images"
            count = min(count, len(real.rows[output]))
        needed = {"is": self.splits, "kid": 3}.get(name, self.neighbours + 1)
        return "" if count >= needed else f"it needs {needed} images, not {count}"

    def _extractor(self) -> dict[str, Any]:
        return {"label": self.features.label, **self.features.details}

    def _read(self, path: Path) -> Reference:
        images = any(name not in _FRECHET and name != "is" for name in self.figures)
        found = read_reference(path, images)
        moments = found.statistics.moments
        if moments and found.extractor is None and self.features.frechet != "FID":
            raise DataError(
                f"'{path}' does not name the network of its statistics, so they must be "
                f"Inception's; they cannot be compared with features of {self.features.label}"
            )
        if found.extractor is not None and found.extractor != self._extractor():
            raise DataError(
                f"the statistics in '{path}' are of features of {_facts(found.extractor)}, "
                f"not of {_facts(self._extractor())}"
            )
        for name, (mean, _) in moments.items():
            if len(mean) != (width := self.features.widths.get(name, len(mean))):
                raise DataError(
                    f"the statistics in '{path}' are of {len(mean)} values an image; "
                    f"{self.features.label} has {width}"
                )
        return found

    def _reference(self) -> Statistics:
        """The reference file's statistics; what it lacks is computed from its images, if any."""
        assert self._given
        found, pixels = self._given.statistics, self._given.pixels
        if pixels is None:
            return found
        for place in range(process() * _BATCH, len(pixels), processes() * _BATCH):
            self._add_pixels(self._real, pixels[place : place + _BATCH])
        computed = self._real.total()
        if not found.moments:
            return computed
        return Statistics(None, found.hash, found.moments, computed.rows)

    def _parts(self) -> dict[str, Shown]:
        return {
            "fd": Shown(self.features.frechet, "lower", 3),
            "kid": Shown("KID", "lower", 6),
            "kid_error": Shown("±", "lower", 6),
            "precision": Shown("precision", "higher", 4),
            "recall": Shown("recall", "higher", 4),
            "sfid": Shown("sFID", "lower", 3),
            "is": Shown("IS", "higher", 3),
        }


def _facts(extractor: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in dict(extractor).items())
