"""Conversion of a data set's labels to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Whole numbers up to this are class indices; larger ones are class names, like text.
_LARGEST = 10**5


def numbered(values: Sequence[Any]) -> tuple[list[str], list[int | None]]:
    """The class names, and the class index of each value; None stays None.

    Whole numbers are class indices already; other values are numbered in sorted order.
    """
    known = {value for value in values if value is not None}
    if known and all(type(value) is int and 0 <= value <= _LARGEST for value in known):
        return [str(number) for number in range(max(known) + 1)], list(values)
    names = sorted({str(value) for value in known})
    numbers = {name: number for number, name in enumerate(names)}
    return names, [None if value is None else numbers[str(value)] for value in values]
