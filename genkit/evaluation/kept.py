"""Records that run directories keep, so that a comparison need not measure again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from genkit.checkpoint.hub import is_address
from genkit.devices import device_text, pick_device
from genkit.errors import GenkitError
from genkit.evaluation.measurement import Measurement
from genkit.evaluation.record import SCHEMA, read_record
from genkit.files import is_file, sha256, write_text
from genkit.plugin.extras import versions
from genkit.plugin.registry import registry
from genkit.run.config import is_run
from genkit.settings import settings_of

_log = logging.getLogger(__name__)


class Kept:
    """The record of a measurement in `records/` of the run directory, if the checkpoint is in one.

    It is created before measuring, because training may replace the weights meanwhile.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.folder = _folder(measurement)
        self.weights = sha256(Path(measurement.info["file"])) if self.folder else ""

    @property
    def file(self) -> Path:
        """Its file, named after a hash of all that decides the figures but the images' pixels."""
        decisive = json.dumps(self._decisive(), sort_keys=True).encode()
        return Path(self.folder or "", f"{hashlib.sha256(decisive).hexdigest()[:16]}.json")

    def read(
        self, progress: Callable[[int, int], object]
    ) -> tuple[dict[str, Any], str, Path] | None:
        """The record, the time of its measurement and its file; None if it does not hold any more.

        All images are read, to compare their pixels. `progress` is called with how many of how many
        are.
        """
        import torch

        from genkit.data.reading import batches

        if not self.folder:
            return None
        file, measurement = self.file, self.measurement
        try:
            record = read_record(file)
        except GenkitError as error:
            _log.debug("%s", error)
            return None
        dataset = measurement.dataset
        wanted = len(dataset) if measurement.images is None else measurement.images
        cpu = torch.device("cpu")
        for _ in batches(dataset, wanted, measurement.batch_size, cpu, progress=progress):
            pass
        same = dataset.hashes().items() <= record["protocol"].items()
        if not same or dataset.problems != record["unreadable"]:
            return None
        record["model"]["path"] = measurement.path  # The directory may have moved.
        return record, record.pop("measured", "an unknown day"), file

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep a new record; where it cannot be written, a log line says why."""
        if not self.folder:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            write_text(self.file, json.dumps({"measured": now, **record}, indent=2) + "\n")
        except GenkitError as error:
            _log.warning("the figures are not kept: %s", error)

    def _decisive(self) -> dict[str, Any]:
        from genkit.evaluation.metrics import ARITHMETIC

        measurement = self.measurement
        metrics = {
            name: settings_of(part.options) if part.options is not None else {}
            for name, part in measurement.metrics.items()
        }
        origins = {plugin.origin for plugin in registry().plugins}
        # Figures can change with the packages that plugins take them from.
        required = {
            name: version
            for origin in sorted(origins)
            for name, version in versions(origin.distribution).items()
        }
        return {
            "schema": SCHEMA,
            "evaluation": ARITHMETIC,
            "protocol": measurement.protocol,
            "weights": self.weights,
            "metrics": metrics,
            "files": {name: sha256(Path(name)) for name in _files(metrics)},
            "batch_size": measurement.batch_size,
            "exact": measurement.exact,
            "by_class": measurement.by_class,
            "device": device_text(pick_device(measurement.device)),
            "mixed_precision": measurement.mixed_precision,
            "versions": {**required, **{each.distribution: each.version for each in origins}},
        }


def _folder(measurement: Measurement) -> Path | None:
    """The folder of records; None for an address, a tokenizer in memory and a file by itself."""
    path = measurement.checkpoint
    if not isinstance(path, str) or is_address(path):
        return None
    run = Path(measurement.info["file"]).parent
    return run / "records" if Path(path).is_dir() or is_run(run) else None


def _files(settings: Any) -> Iterator[str]:
    """The files that options name, such as weights."""
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from _files(value)
    elif isinstance(settings, str) and settings and is_file(settings):
        yield settings
