"""Figures along with what they are of, and whether those of two models may stand in one table.

A *record* is what `genkit evaluate --json` prints. Its `protocol` says which images were looked at
and how.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import genkit
from genkit.errors import GenkitError
from genkit.evaluation.images import evaluation_images, options_of, resolution_of

if TYPE_CHECKING:
    from genkit.images import Pixels
    from genkit.interfaces import Split

SCHEMA = 1

# What must be alike. The rest of a protocol tells in words why the pixels are not.
_DECISIVE = ("evaluation", "resolution", "pixels")
_HASHES = ("fingerprint", "files", "pixels")
_WORDS = {
    "evaluation": "version of the evaluation's arithmetic",
    "data": "data set",
    "asked": "images asked for",
    "found": "images found",
    "fingerprint": "fingerprint of the data set",
    "files": "hash of the list of files",
    "pixels": "hash of the images' pixels",
}
_FORM = {
    "images": int,
    "psnr": int | float,
    "ssim": int | float | None,
    "mae": int | float,
    "mae_over_variance": int | float | None,
    "bits_per_pixel": int | float,
    "levels": list,
    "protocol": dict,
    "versions": dict,
    "model": dict,
    "device": str,
    "precision": str,
}


class HashedSplit:
    """A split that remembers which images it gave.

    Only pixels tell for sure: two files may have one name and one size.
    """

    def __init__(self, split: Split) -> None:
        self.split, self.fingerprint, self.problems = split, split.fingerprint, split.problems
        self.channels, self.classes = split.channels, split.classes
        self._seen: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        """The image's name in the data set."""
        return self.split.name(index)

    def label(self, index: int) -> int | None:
        """The image's label."""
        return self.split.label(index)

    def caption(self, index: int) -> str | None:
        """The image's caption."""
        return self.split.caption(index)

    def images(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """The images; the hash of each is remembered."""
        pixels = self.split.images(indices, seeds)
        for index, image in zip(indices, pixels, strict=True):
            self._seen[index] = hashlib.sha256(image.tobytes()).digest()
        return pixels

    def hashes(self) -> dict[str, str]:
        """One of the names of all images given, one of their pixels, both in whatever order."""
        names = "\n".join(sorted(self.name(index) for index in self._seen))
        return {
            "files": hashlib.sha256(names.encode()).hexdigest(),
            "pixels": hashlib.sha256(b"".join(sorted(self._seen.values()))).hexdigest(),
        }


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file; `GenkitError` if it is damaged or something else."""
    again = "write one with genkit evaluate CHECKPOINT --out FILE.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GenkitError(f"'{path}' cannot be read: {error.strerror}; {again}") from error
    except (ValueError, RecursionError):
        raise GenkitError(f"'{path}' is damaged, or no JSON: {again}") from None
    if not isinstance(record, dict) or not {"psnr", "protocol"} <= record.keys():
        raise GenkitError(f"'{path}' is JSON, but no record of figures: {again}")
    schema = record.get("schema")
    if schema is None:
        raise GenkitError(
            f"'{path}' is of an older genkit, which did not say enough to compare by: {again}"
        )
    if type(schema) is not int or schema > SCHEMA:
        raise GenkitError(
            f"'{path}' has schema {schema!r}; this genkit reads up to {SCHEMA}: use a newer genkit"
        )
    if wrong := _malformed(record):
        raise GenkitError(f"'{path}' is damaged: it has no usable '{wrong}'; {again}")
    return record


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two protocols, and both values; nothing if figures may be compared.

    Options that change no pixel do not count. Hashes are named only where nothing else differs.
    """
    if all(one.get(key) == other.get(key) for key in _DECISIVE):
        return []
    a, b = dict(_flat(one)), dict(_flat(other))
    found = [
        (_WORDS.get(key, key), a.get(key), b.get(key))
        for key in {**a, **b}
        if a.get(key) != b.get(key)
        and key not in _HASHES
        # Options of two kinds of data differ as a matter of course.
        and (one.get("data") == other.get("data") or not key.startswith("option "))
    ]
    return found or [
        (_WORDS[key], str(one.get(key))[:20], str(other.get(key))[:20])
        for key in _HASHES
        if one.get(key) != other.get(key)
    ]


def circumstances(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Versions, device and precision that differ between records, and both values."""
    for key in {**one["versions"], **other["versions"]}:
        yield from _unlike(key, one["versions"].get(key), other["versions"].get(key))
    for key in ("device", "precision"):
        yield from _unlike(key, one[key], other[key])


def _unlike(key: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if one != other:
        yield key, one, other


def _flat(protocol: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            yield from ((f"option {name}", item) for name, item in value.items())
        else:
            yield key, value


def _malformed(record: Mapping[str, Any]) -> str:
    """The first entry of a record that has not the type it must have, or nothing."""
    for key, kind in _FORM.items():
        value = record.get(key, ...)
        if not isinstance(value, kind) or isinstance(value, bool):
            return key
        if isinstance(value, float) and not math.isfinite(value):
            return key
    for level in record["levels"]:
        usage = level.get("usage") if isinstance(level, dict) else None
        if not isinstance(usage, int | float) or not math.isfinite(usage):
            return "levels"
    if any(key not in record["protocol"] for key in (*_DECISIVE, "data", "split")):
        return "protocol"
    model = record["model"]
    sound = isinstance(model.get("fingerprint"), str) and isinstance(model.get("path"), str)
    return "" if sound else "model"


class Measurement:
    """A checkpoint and the images to measure it on, found without torch."""

    def __init__(
        self,
        checkpoint: str,
        data: str | None,
        split: str | None,
        images: int | None,
        resolution: int | None,
        batch_size: int,
    ) -> None:
        self.checkpoint, self.images, self.batch_size = checkpoint, images, batch_size
        self.info = genkit.inspect(checkpoint)
        size = resolution_of(self.info, resolution)
        dataset, self.data, split, self.notes = evaluation_images(
            checkpoint, self.info, data, (size, size), split
        )
        self.dataset = HashedSplit(dataset)
        training = self.info["training"] or {}
        # Only training images depend on the run's seed.
        seed = {"seed": training.get("seed", 0)} if split == "train" else {}
        self.protocol: dict[str, Any] = {
            "data": self.data.name,
            "split": split,
            **seed,
            "resolution": size,
            "asked": images,
            "options": options_of(self.data),
            "fingerprint": dataset.fingerprint,
        }

    def record(self) -> dict[str, Any]:
        """The figures, and beside them all that says what they are of."""
        import torch

        from genkit.checkpoint.model import fingerprint
        from genkit.evaluation.metrics import ARITHMETIC, evaluate

        tokenizer = genkit.load(self.info["file"])
        weights = fingerprint(tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        figures = evaluate(tokenizer.to(device), self.dataset, self.images, self.batch_size)
        if not math.isfinite(figures["psnr"]):
            raise GenkitError(
                f"'{self.checkpoint}' has no figures: what it makes of images are no finite "
                "numbers, so its training diverged; name an earlier checkpoint or another run"
            )
        assert self.data.component
        owner = self.data.component.origin
        training = self.info["training"] or {}
        kind = str(next(tokenizer.parameters()).dtype).removeprefix("torch.")
        rounded = device == "cuda" and torch.backends.cudnn.allow_tf32
        return {
            "schema": SCHEMA,
            **figures,
            "protocol": {
                "evaluation": ARITHMETIC,
                **self.protocol,
                "found": figures["images"],
                **self.dataset.hashes(),
            },
            "unreadable": self.dataset.problems,
            "versions": {
                "genkit": genkit.__version__,
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in ("numpy", "pillow")},
                owner.distribution: owner.version,
            },
            "model": {
                "path": self.checkpoint,
                "fingerprint": weights,
                "components": self.info["components"],
                "training": {key: training.get(key) for key in ("step", "seed")},
            },
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "precision": f"{kind}, convolutions in tf32" if rounded else kind,
        }
