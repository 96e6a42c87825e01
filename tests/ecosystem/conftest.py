"""The same pictures in every format, without a network."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import lacking

if MISSING := lacking("datasets", "webdataset"):
    collect_ignore_glob = ["test_*.py"]
else:
    import datasets
    from pictures import COUNT, png, table, write_shard


def pytest_report_header() -> str:
    """Report which tests are not collected."""
    return f"tests/ecosystem needs {', '.join(MISSING)}: uv sync --all-groups" if MISSING else ""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> Any:
        raise AssertionError(f"the network is asked for {args}")

    connect = socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # Workers send their batches through Unix sockets.
    monkeypatch.setattr(
        socket.socket,
        "connect",
        lambda own, to: connect(own, to) if own.family == socket.AF_UNIX else refuse(to),
    )


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' own cache, and no progress bars in their output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in every format, and held-out ones."""
    root = tmp_path_factory.mktemp("places")
    train, test = table(), table(100, 6)
    (root / "parquet").mkdir()
    train.to_parquet(root / "parquet" / "train-00000.parquet")
    test.to_parquet(root / "parquet" / "test-00000.parquet")
    train.save_to_disk(root / "saved")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(root / "saved-splits")
    shutil.copy(root / "parquet" / "train-00000.parquet", root / "one.parquet")
    shutil.copy(next((root / "saved").glob("*.arrow")), root / "one.arrow")
    for number in range(COUNT):
        file = root / "images" / "train" / str(number % 2) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    for shard in range(3):
        each = COUNT // 3
        write_shard(root / f"a-{shard:02d}.tar", range(shard * each, (shard + 1) * each))
    write_shard(root / "b.tar", range(100, 106))
    return root
