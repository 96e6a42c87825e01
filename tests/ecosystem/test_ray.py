"""examples/ray on a real cluster of this machine: the same rows as `genkit encode`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import invoke, need
from pictures import encoded
from PIL import Image

import genkit

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "ray" / "encode.py"
# Starts a cluster in a folder, runs a script on it, and reads a folder of shards.
ON_A_CLUSTER = """
import runpy, sys, ray
folder, shards, *sys.argv = sys.argv[1:]
ray.init(
    num_cpus=2, address="local", include_dashboard=False, _node_ip_address="127.0.0.1",
    _temp_dir=folder, object_store_memory=100 * 2**20,
)
runpy.run_path(sys.argv[0], run_name="__main__")
print(ray.data.read_parquet(shards).count(), "rows in", shards)
"""


def processes_of(folder: Path) -> list[int]:
    """The processes that have the folder in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(folder) in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


@pytest.fixture
def cluster() -> Iterator[Path]:
    """A folder for a cluster; its path is short, because that of a socket is limited."""
    need("ray")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        deadline = time.monotonic() + 20
        while (left := processes_of(Path(folder))) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert not left


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixty images of two classes; one file is not an image, and one is cut short."""
    rng = np.random.default_rng(0)
    for number in range(60):
        file = tmp_path / "images" / str(number % 2) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        base = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        file.write_bytes(encoded(base.resize((40, 48), Image.Resampling.BICUBIC)))
    (tmp_path / "images" / "0" / "12.png").write_bytes(b"text")
    cut = tmp_path / "images" / "1" / "13.png"
    cut.write_bytes(cut.read_bytes()[:-500])
    return tmp_path / "images"


def run(cluster: Path, *args: str | Path) -> str:
    environment = {
        **os.environ,
        "HOME": str(cluster),  # Ray writes a token there.
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-c", ON_A_CLUSTER, cluster, *args]
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def rows(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("*.parquet")))).sort_by("name")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_example_gives_the_rows_of_the_command(
    workers: str, cluster: Path, images: Path, trained: Path, tmp_path: Path
) -> None:
    shards, out = tmp_path / "shards", tmp_path / "rows"
    options = ["--batch-size", "8"]
    code, text = invoke("encode", trained, images, "--out", shards, "--format", "parquet", *options)
    assert code == 0, text
    options += ["--workers", workers, "--rows-per-file", "16"]
    printed = run(cluster, shards, EXAMPLE, trained, images, "--out", out, *options)
    lines = printed.splitlines()
    assert "0/12.png is left out: it is not an image in a supported format" in lines
    assert any(line.startswith("1/13.png is left out: ") for line in lines)
    assert f"58 images are in {out}" in lines
    assert f"58 rows in {shards}" in lines
    assert rows(out).num_rows == 58
    assert rows(out).schema.equals(rows(shards).schema)
    assert rows(out).equals(rows(shards))
    assert len(set(map(str, rows(out)["level0"].to_pylist()))) == 58
    files = sorted(map(str, out.glob("*.parquet")))
    assert len(files) >= 3
    tokens = genkit.load_tokens(files[0], genkit.load(trained))
    assert 16 <= len(tokens) < 58
    read, expected = (
        datasets.load_dataset("parquet", data_files=names, split="train")
        for names in (files, [str(shards / "00000.parquet")])
    )
    assert read.features == expected.features
    assert read.features["label"].names == ["0", "1"]
    assert len(read) == 58


@pytest.mark.slow
def test_the_example_overwrites_nothing(tmp_path: Path) -> None:
    need("ray")
    command = [sys.executable, str(EXAMPLE), "model", "images", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"'{tmp_path}' exists already: name another --out" in done.stderr
