"""The command of one of several processes that train a quantizer or measure a metric together.

`python -m genkit.testing.process FOLDER SETTINGS PROCESSES RANK`, where the settings are JSON: the
kind, the component's name, the number of channels and the options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genkit.checkpoint.model import distinct_state
from genkit.interfaces import Level
from genkit.testing.metric import examples, measured
from genkit.testing.tools import met, part


def train(
    folder: str, name: str, channels: int, options: dict[str, Any], processes: int, rank: int
) -> None:
    """Train on this process's own latents; each process has a different number of them."""
    with met(rank, folder, processes):
        torch.manual_seed(0)
        quantizer = part("quantizer", name, options).build(Level(0, channels, 4))
        torch.manual_seed(1 + rank)
        for _ in range(3):
            quantizer(torch.randn(2 + rank, channels, 4, 4))
        save_file(
            {key: value.contiguous() for key, value in distinct_state(quantizer).items()},
            Path(folder) / f"{rank}.safetensors",
        )


def measure(
    folder: str, name: str, channels: int, options: dict[str, Any], processes: int, rank: int
) -> None:
    """Measure this process's share of the images, then all images on the first process."""
    with met(rank, folder, processes):
        chosen = part("metric", name, options)
        images, reconstructions = examples(channels)
        mine = [(images[rank::processes], reconstructions[rank::processes])]
        everything = [(images, reconstructions)] if rank == 0 else []
        results = [measured(chosen, channels, batches) for batches in (mine, everything)]
        Path(folder, f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    where, settings, processes, rank = sys.argv[1:]
    kind, name, channels, options = json.loads(settings)
    work = {"quantizer": train, "metric": measure}[kind]
    work(where, name, channels, options, int(processes), int(rank))
