"""Features of a set of images: sums over all processes, and files of reference statistics."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from genkit.distributed import all_sum, gather_rows
from genkit.errors import DataError
from genkit.files import replacing, sha256
from genkit.images import Pixels
from genkit.ops.precision import double

# The names of the mean and the covariance in a file, for the features and for the spatial ones.
# ADM's files have the same.
_NAMES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# The entry of our files with the number and hash of the images and the facts on the network.
_FACTS = "genkit"
# The beginning of the names of our files' entries with the values of single images.
_ROWS = "rows_"


@dataclass(frozen=True)
class Statistics:
    """A set of images as distances see it: outputs of a network, by the output's name.

    `moments` are the mean and the covariance in float64, `rows` the values of single images in
    float32, `[N, d]`. `images` is None if a file does not say from how many images its moments are.
    `order` sorts the rows by the images' hashes.
    """

    images: int | None
    hash: str
    moments: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    order: Sequence[int] = ()


class ImageSet:
    """Collects the outputs of a network for the images of one set, in any number of processes.

    `widths` has the number of values of each output. Moments are kept of the outputs `moments`,
    values of single images of the outputs `rows`.
    """

    def __init__(
        self, widths: Mapping[str, int], moments: Sequence[str], rows: Sequence[str]
    ) -> None:
        self.widths = widths
        # The sums of x and of x xᵀ, the latter one row below the former.
        self._sums = {
            name: torch.zeros(widths[name] + 1, widths[name], dtype=torch.float64)
            for name in moments
        }
        self._rows: dict[str, list[Tensor]] = {name: [] for name in rows}
        self._hashes: list[bytes] = []

    def add(self, pixels: Pixels, outputs: Mapping[str, Tensor]) -> None:
        """Add images uint8 `[B, H, W, C]` and the network's outputs `[B, d]` for them."""
        self._hashes += [hashlib.sha256(image.tobytes()).digest() for image in pixels]
        for name, sums in self._sums.items():
            values = double(outputs[name])
            more = torch.cat([values.sum(0, keepdim=True), values.T @ values])
            self._sums[name] = sums.to(values.device) + more
        for name, rows in self._rows.items():
            rows.append(outputs[name].float().cpu())

    def total(self) -> Statistics:
        """The statistics of the images of all processes, the same for any number of them.

        The rows of two sets whose images were added in pairs are in the same order. Every process
        must call it.
        """
        mine = np.frombuffer(b"".join(self._hashes), np.int64).reshape(-1, 4).copy()
        hashes = gather_rows(torch.from_numpy(mine)).cpu().numpy()
        texts = [row.tobytes() for row in hashes]
        count = len(texts)
        moments = {}
        for name, sums in self._sums.items():
            summed = all_sum(sums.clone()).cpu() / max(count, 1)
            mean, square = summed[0], summed[1:]
            covariance = (square - torch.outer(mean, mean)) * count / max(count - 1, 1)
            moments[name] = mean, covariance
        return Statistics(
            count,
            hashlib.sha256(b"".join(sorted(texts))).hexdigest(),
            moments,
            {name: self._gathered(name) for name in self._rows},
            sorted(range(count), key=texts.__getitem__),
        )

    def _gathered(self, name: str) -> Tensor:
        empty = torch.empty(0, self.widths[name])
        return gather_rows(torch.cat([empty, *self._rows[name]])).cpu()


def save_statistics(path: Path, found: Statistics, extractor: Mapping[str, Any]) -> None:
    """Write statistics to an `.npz` file, with the facts on the network in `extractor`.

    Its entries `mu` and `sigma` are named as in ADM's files.
    """
    facts = {"images": found.images, "hash": found.hash, "extractor": extractor}
    arrays = {f"{_ROWS}{name}": rows.numpy() for name, rows in found.rows.items()}
    for name, moments in found.moments.items():
        if name in _NAMES:
            arrays |= dict(zip(_NAMES[name], (each.numpy() for each in moments), strict=True))
    with replacing(path) as temporary, temporary.open("wb") as file:
        # NumPy's types take the names of arrays for options.
        cast("Any", np.savez)(file, **{_FACTS: np.array(json.dumps(facts))}, **arrays)


@dataclass(frozen=True)
class Reference:
    """A file of reference statistics: its statistics, and the facts on the network, if it has any.

    `pixels` are images of a file of ADM's.
    """

    statistics: Statistics
    extractor: Mapping[str, Any] | None
    pixels: Pixels | None


def read_reference(path: Path, images: bool = True) -> Reference:
    """Read an `.npz` file of ours or ADM's; its images only if it has no moments, or if `images`.

    `DataError` if it holds neither.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {*file.files} - {"arr_1"}
            if "mu" in names and not images:
                names.discard("arr_0")
            arrays = {name: file[name] for name in sorted(names)}
    except FileNotFoundError:
        raise DataError(f"the reference file '{path}' does not exist") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"the reference file '{path}' cannot be read as .npz: {error}") from error
    moments = {
        name: (torch.from_numpy(arrays[mu]).double(), torch.from_numpy(arrays[sigma]).double())
        for name, (mu, sigma) in _NAMES.items()
        if {mu, sigma} <= arrays.keys()
    }
    pixels = arrays.get("arr_0")
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4):
        raise DataError(f"the images 'arr_0' in '{path}' must be uint8 [N, H, W, C]")
    if not moments and pixels is None and _FACTS not in arrays:
        raise DataError(
            f"the reference file '{path}' has neither mu and sigma nor images arr_0; write one "
            "with the option save"
        )
    if _FACTS not in arrays:
        return Reference(Statistics(None, sha256(path), moments), None, pixels)
    facts = json.loads(str(arrays[_FACTS]))
    rows = {
        name.removeprefix(_ROWS): torch.from_numpy(values)
        for name, values in arrays.items()
        if name.startswith(_ROWS)
    }
    found = Statistics(facts["images"], facts["hash"], moments, rows)
    return Reference(found, facts["extractor"], None)
