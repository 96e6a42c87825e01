"""The number of cases per test: seconds by default, minutes in the tier `full`."""

from __future__ import annotations

import pytest

QUICK = {
    "inspect": 200,
    "load": 60,
    "bytes": 200,
    "tokens": 200,
    "decode": 20,
    "toml": 150,
    "toml text": 150,
    "command": 60,
    "folder": 40,
    "coverage": 300,
    "pickles": 200,
    "tensors": 100,
    "archives": 120,
    "spoilt": 100,
}
FULL = {
    "inspect": 2_000,
    "load": 500,
    "bytes": 2_500,
    "tokens": 2_000,
    "decode": 200,
    "toml": 1_500,
    "toml text": 2_000,
    "command": 700,
    "folder": 500,
    "coverage": 91_000,
    "pickles": 10_000,
    "tensors": 4_000,
    "archives": 4_000,
    "spoilt": 6_000,
}


def counted(name: str) -> pytest.MarkDecorator:
    """Parametrizes a test with the `count` of cases of both tiers."""
    full = pytest.param(FULL[name], marks=pytest.mark.full, id="full")
    return pytest.mark.parametrize("count", [pytest.param(QUICK[name], id="quick"), full])
