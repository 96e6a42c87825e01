"""Random draws that follow from the run's seed, the step and the process alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed(number: int) -> None:
    """Seed every generator that a component may draw from."""
    random.seed(number)
    np.random.seed(number % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # Looking for accelerators takes a tenth of a millisecond.
        torch.default_generator.manual_seed(number)


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """A context whose random draws leave the generators as they were."""
    own, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(own)
    np.random.set_state(numbers)
