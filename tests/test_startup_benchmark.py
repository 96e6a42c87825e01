"""The start-up benchmark refuses commands that do not do their work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.speed import startup

HELLO = (*startup._PYTHON, "print('hello')")


def test_times_are_compared_with_the_first_command(tmp_path: Path) -> None:
    programs = [("a", HELLO, "hello"), ("b", (*startup._PYTHON, "sum(range(10**7))"), "")]
    figures = startup._compare(programs, 2, tmp_path, os.environ)
    assert figures["a"]["ratio"]["median"] == 1
    assert figures["b"]["ratio"]["median"] > 1
    text = startup.page({"tell": figures, "step": figures}, tmp_path)
    assert "| `b` |" in text


def test_a_command_with_other_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="greeting prints no 'good bye': hello"):
        startup._compare([("greeting", HELLO, "good bye")], 1, tmp_path, os.environ)
