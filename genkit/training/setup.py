"""What a run needs before its first step, and agreement between its processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import genkit
from genkit.data.reading import batches, none_readable
from genkit.distributed import all_sum, processes
from genkit.errors import TrainingError
from genkit.interfaces import Split
from genkit.run.options import TokenizerRun


def check_same(origin: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Which versions have changed since the run was begun, in words.

    `TrainingError` if the data or the number of processes are not those of the resumed run.
    """
    if origin["fingerprint"] != before["fingerprint"]:
        raise TrainingError("the training images have changed since: start a new run on them")
    if origin["processes"] != before["processes"]:
        count = before["processes"]
        each = "process" if count == 1 else "processes"
        raise TrainingError(f"the run was trained by {count} {each}: resume it with as many")
    return [
        f"{name} is {now}, was {before['versions'].get(name, 'not there')}"
        for name, now in origin["versions"].items()
        if before["versions"].get(name) != now
    ]


def check_heldout(run: TokenizerRun, heldout: Split, process: int, device: torch.device) -> None:
    """Read the images that every validation looks at; `DataError` if none of them can be read.

    Else a run would find out at its first validation.
    """
    looked_at = batches(
        heldout, run.validation_images, run.batch_size, torch.device("cpu"), process
    )
    read = sum(len(kept) for kept, _ in looked_at)
    if not all_sum(torch.tensor(float(read), device=device)):
        raise none_readable(heldout, "held-out images")


def origin_of(dataset: Split, device: torch.device) -> dict[str, Any]:
    """By what a resumed run is known to be the same one, and what could change its last digits."""
    versions = {"genkit": genkit.__version__, "torch": str(torch.__version__)}
    return {
        "fingerprint": dataset.fingerprint,
        "processes": processes(),
        "versions": {**versions, "device": device.type, "threads": str(torch.get_num_threads())},
    }
