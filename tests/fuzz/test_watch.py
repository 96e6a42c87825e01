"""The watch sees forbidden events."""

from __future__ import annotations

import pickle
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz.watch import explore, watched
from hypothesis import strategies as st


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("exploded",)


BOMB = pickle.dumps(Bomb())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda here: (here / "new").write_text("x"), "open"),
        (lambda here: (here / "old").read_text(), "open"),
        (lambda here: (here / "folder").mkdir(), "mkdir"),
        (lambda here: (here / "old").rename(here / "other"), "rename"),
        (lambda here: subprocess.run(["true"], check=True), "Popen"),
        (lambda here: socket.getaddrinfo("localhost", 80), "getaddrinfo"),
        (lambda here: pickle.loads(BOMB), "find_class"),
        (lambda here: exec(compile("1", str(here / "code.py"), "exec"), {}), "exec of"),
        (lambda here: time.sleep(5), "took over"),
        (lambda here: bytearray(2**28)[::1024], "MB"),
    ],
    ids=range(10),
)
def test_forbidden_events_are_seen(
    tmp_path: Path, act: Callable[[Path], Any], message: str
) -> None:
    (tmp_path / "old").write_text("x")
    (tmp_path / "allowed").mkdir()
    with (
        pytest.raises(AssertionError, match=message),
        watched([], [tmp_path / "allowed"], seconds=0.5, megabytes=100),
    ):
        act(tmp_path)


def test_further_events_can_be_forbidden() -> None:
    compile("1", "code.py", "eval")
    with pytest.raises(AssertionError, match="compile"), watched(never=["compile"]):
        compile("1", "code.py", "eval")


def test_allowed_events_pass(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    with watched([tmp_path / "old"], [tmp_path / "out"]):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "new").write_text((tmp_path / "old").read_text())


def test_cases_are_counted() -> None:
    with pytest.raises(AssertionError, match="2 cases of 50"):
        explore(st.booleans(), lambda case: None, 50)
