"""Answers of a device that the host believes now and asks about later.

A host that waits for its device at every question keeps the device idle in between. So a search on
a GPU gives its answer at once, beside a doubt: a flag on the device that says whether the answer
may be wrong. By default the host then asks for the flag, and finds the answer the slow way if it is
raised. Inside `together` and `doubted` the flags of many searches are asked for as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_DOUBTS: ContextVar[list[Tensor] | None] = ContextVar("doubts", default=None)


def believed(answer: Tensor, doubt: Tensor, otherwise: Callable[[], Tensor]) -> Tensor:
    """The answer, or `otherwise()` if it is in doubt, which is asked now or by the caller."""
    doubts = _DOUBTS.get()
    if doubts is None:
        return otherwise() if doubt else answer
    doubts.append(doubt)
    return answer


@contextmanager
def doubted() -> Iterator[list[Tensor]]:
    """Collect the doubts of all searches inside, instead of asking for each.

    If one of them is raised, everything inside must be undone and repeated outside.
    """
    doubts: list[Tensor] = []
    token = _DOUBTS.set(doubts)
    try:
        yield doubts
    finally:
        _DOUBTS.reset(token)


def together(work: Callable[[], T]) -> T:
    """`work()`, with one question to the device at its end, for the doubts of all searches inside.

    The work is repeated if there was one, so it must change nothing.
    """
    if _DOUBTS.get() is not None:
        return work()
    with doubted() as doubts:
        result = work()
    return work() if doubts and torch.stack(doubts).any() else result
