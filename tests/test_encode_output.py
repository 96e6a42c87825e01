"""Encoding that is interrupted, killed, shared or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import genkit_command, invoke, need
from filelock import FileLock
from killed import killed_until_done
from mounts import MOUNTS, in_own_mounts
from photographs import BATCHES, FLAGS, Stop, contents, photos, stop_at

import genkit
from genkit.errors import CheckpointError, GenkitError, OptionError
from genkit.tokens import UNFINISHED


@pytest.mark.parametrize("out", ["t.safetensors", "shards"])
@pytest.mark.parametrize("count", [1, 9, 30])
def test_an_interrupted_encoding_goes_on(
    trained: Path, folder: Path, tmp_path: Path, out: str, count: int
) -> None:
    """Complete shards are kept; the result is byte for byte that of one go."""
    genkit.encode(trained, folder, tmp_path / "whole" / out, **BATCHES)
    with pytest.raises(Stop):
        genkit.encode(trained, folder, tmp_path / out, **BATCHES, progress=stop_at(count))
    left = tmp_path / (f"{out}.unfinished" if out.endswith("s") and "." in out else out)
    shards = {file: file.stat().st_mtime_ns for file in left.glob("0*")}
    assert len(shards) == (count - 1) // 8
    with pytest.raises(CheckpointError, match="an unfinished output"):
        genkit.load_tokens(left)
    seen: list[int] = []
    genkit.encode(trained, folder, tmp_path / out, **BATCHES, progress=lambda n, _: seen.append(n))
    assert seen[0] == len(shards) * 8
    assert seen[-1] == 30
    assert contents(tmp_path / out) == contents(tmp_path / "whole" / out)
    if out == "shards":
        assert all(file.stat().st_mtime_ns == time for file, time in shards.items())
    with pytest.raises(GenkitError, match=r"already: name another --out"):
        genkit.encode(trained, folder, tmp_path / out, **BATCHES)


def test_images_of_many_sizes_go_on(trained: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 30, shapes=True)
    native: dict[str, Any] = {**BATCHES, "resolution": "native"}
    whole = genkit.encode(trained, folder, tmp_path / "whole", **native)
    assert whole.sizes is not None
    assert len({*map(tuple, whole.sizes.tolist())}) == 15
    with pytest.raises(Stop):
        genkit.encode(trained, folder, tmp_path / "out", **native, progress=stop_at(12))
    genkit.encode(trained, folder, tmp_path / "out", **native)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_unreadable_first_image_belongs_to_its_shard(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    first = folder / "a" / "00000.png"
    first.write_bytes(first.read_bytes()[:1000])
    genkit.encode(trained, folder, tmp_path / "whole", **BATCHES)
    with pytest.raises(Stop):
        genkit.encode(trained, folder, tmp_path / "out", **BATCHES, progress=stop_at(10))
    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    assert sorted(tokens.table["unreadable"]) == ["a/00000.png", "b/00003.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_unfinished_encoding_of_something_else_is_refused(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    need("pyarrow")
    out = tmp_path / "out"

    def encode(tokenizer: Any = trained, images: Any = folder, **options: Any) -> None:
        genkit.encode(tokenizer, images, out, **{**BATCHES, **options})

    with pytest.raises(Stop):
        encode(progress=stop_at(9))
    before = contents(out)
    other = genkit.load(trained)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    for message, changes in {
        "begun with model": {"tokenizer": other},
        "shard size 8, not 16": {"shard_size": 16},
        "views 1, not 2": {"views": 2, "images": f"{folder}?flip=true"},
        "pixels": {"images": f"{folder}?short_side=36"},
        "format safetensors, not parquet": {"format": "parquet"},
        "precision float32, not": {"mixed_precision": "bf16"},
        r"resolution \[32, 32\], not": {"resolution": 64},
    }.items():
        with pytest.raises(GenkitError, match=message):
            encode(**changes)
    (folder / "c.png").write_bytes((folder / "a" / "00000.png").read_bytes())
    with pytest.raises(GenkitError, match="begun with set of images"):
        encode()
    (folder / "c.png").unlink()
    with FileLock(out / ".lock"), pytest.raises(GenkitError, match="another process is writing"):
        encode()
    assert contents(out) == before
    encode()


def test_an_output_that_cannot_be_written_is_refused_first(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    need("pyarrow")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / ".env").write_text("mine")
    (tmp_path / "t.safetensors.unfinished").mkdir()
    (tmp_path / "t.safetensors.unfinished" / "mine.txt").write_text("mine")
    for out, message in {
        "notes": "is a folder with files already: name another",
        ".hidden": "is a folder with files already: name another",
        "notes/mine.txt": "is a file: name a folder",
        "notes/mine.txt/deeper": "is not a folder",
        "t.safetensors": "unfinished' is in the way: remove it",
        "x" * 300: "cannot be written: File name too long",
    }.items():
        code, text = invoke("encode", trained, "nowhere", "--out", tmp_path / out)
        assert (code, message in text) == (1, True), text
        if out != "t.safetensors":
            code, text = invoke("decode", trained, tmp_path / "notes", "--out", tmp_path / out)
            assert code == 1
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}
    assert contents(tmp_path / ".hidden") == {".env": b"mine"}
    assert contents(tmp_path / "t.safetensors.unfinished") == {"mine.txt": b"mine"}
    code, text = invoke(
        "encode", trained, folder, "--out", tmp_path / "t.parquet", "--format", "parquet"
    )
    assert (code, "writes a folder of shards" in text) == (2, True), text
    code, text = invoke("encode", trained, folder, "--out", tmp_path / "x", "--shard-size", "0")
    assert (code, "0 is not in the range" in text) == (2, True), text
    with pytest.raises(OptionError, match="shard_size must be a whole number of 1 or more, not 0"):
        genkit.encode(trained, folder, tmp_path / "x", shard_size=0)
    (tmp_path / "empty").mkdir()
    code, text = invoke("encode", trained, tmp_path / "empty", "--out", tmp_path / "x")
    assert (code, "no image can be read" in text) == (1, True), text
    assert not (tmp_path / "x").exists()


def test_an_unfinished_file_belongs_to_its_plan(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    """A kill between the end of a file and the removal of its parts."""
    out = tmp_path / "t.safetensors"
    with pytest.raises(Stop):
        genkit.encode(trained, folder, out, **BATCHES, progress=stop_at(20))
    parts = tmp_path / "t.safetensors.unfinished"
    plan = (parts / UNFINISHED).read_bytes()
    genkit.encode(trained, folder, out, **BATCHES)
    before = out.read_bytes()
    parts.mkdir()
    (parts / UNFINISHED).write_bytes(plan)
    with pytest.raises(GenkitError, match="begun with views 1, not 2"):
        genkit.encode(trained, f"{folder}?flip=true", out, **BATCHES, views=2)
    genkit.encode(trained, folder, out, **BATCHES)
    assert not parts.exists()
    parts.mkdir()
    with pytest.raises(GenkitError, match="exists already"):
        genkit.encode(trained, folder, out, **BATCHES)
    assert not parts.exists()
    assert out.read_bytes() == before
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / UNFINISHED).write_text("[]")
    with pytest.raises(GenkitError, match="begun with command null, not encode"):
        genkit.encode(trained, folder, tmp_path / "odd", **BATCHES)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE '2', which no launcher sets"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'"),
    ],
)
def test_a_launchers_leftovers_are_reported(
    environment: dict[str, str],
    message: str,
    trained: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GenkitError, match=message):
        genkit.encode(trained, folder, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--processes", "environment"])
def test_two_processes_write_the_same(
    launcher: str, trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "alone", **BATCHES)
    args = ["encode", trained, folder, "--out", tmp_path / "both", *FLAGS]
    if launcher == "--processes":
        done = genkit_command(*args, "--processes", "2")
        assert done.returncode == 0, done.stderr
        assert "b/00003.png is left out" in done.stderr
        assert "Encoded 29 images (1 file left out) into" in done.stdout
    else:
        command = [sys.executable, "-m", "genkit_cli", *map(str, args)]
        running = [
            subprocess.Popen(
                command, env={**os.environ, "RANK": f"{rank}", "WORLD_SIZE": "2"}, text=True
            )
            for rank in (1, 0)
        ]
        assert [process.wait(100) for process in running] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_a_full_disk_keeps_complete_shards(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit.tokens.encode as engine

    real, calls = engine.write_rows, []

    def full(path: Path, *args: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise GenkitError(f"'{path}' cannot be written: No space left on device")
        real(path, *args)

    monkeypatch.setattr(engine, "write_rows", full)
    with pytest.raises(GenkitError, match=r"No space left on device; 2 of 4 shards are complete"):
        genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    monkeypatch.undo()
    tokens = genkit.encode(trained, folder, tmp_path / "out", **BATCHES)
    assert len(tokens) == 29


@pytest.mark.slow
@MOUNTS
def test_a_disk_that_is_really_full(trained: Path, folder: Path, tmp_path: Path) -> None:
    """Once there is room again, the same command finishes."""
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    genkit.encode(trained, folder, whole, **BATCHES)
    room = sum(map(len, contents(whole).values())) // 2
    encode = f"{sys.executable} -m genkit_cli encode {trained} {folder} {' '.join(FLAGS)}"
    done = in_own_mounts(
        f"mount -t tmpfs -o size={room} tmpfs {disk} && ({encode} --out {disk}/out; "
        f"mount -o remount,size=4m {disk}; {encode} --out {disk}/out; cp -r {disk}/out {tmp_path})"
    )
    assert done.stderr.count("No space left on device; ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_a_killed_encoding_ends_with_the_same_bytes(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    genkit.encode(trained, folder, tmp_path / "whole" / "t.safetensors", **BATCHES)
    args = ["encode", str(trained), str(folder), *FLAGS, "--workers", "2"]
    struck = killed_until_done(args, tmp_path / "t.safetensors", kills=1, seed=1)
    assert struck == 1
    assert contents(tmp_path / "t.safetensors") == contents(tmp_path / "whole" / "t.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "t.safetensors", "whole"]


@pytest.mark.parametrize(
    ("out", "more", "rounds"),
    [
        pytest.param("shards", ["--processes", "2"], 1, marks=pytest.mark.slow),
        pytest.param("png", ["--processes", "2"], 1, marks=pytest.mark.slow),
        pytest.param(
            "native", ["--resolution", "native", "--processes", "2"], 1, marks=pytest.mark.slow
        ),
        pytest.param("t.safetensors", [], 3, marks=pytest.mark.full),
        pytest.param("shards", ["--workers", "2"], 3, marks=pytest.mark.full),
        pytest.param("pq", ["--format", "parquet", "--processes", "2"], 3, marks=pytest.mark.full),
        pytest.param("npy", ["--format", "npy"], 3, marks=pytest.mark.full),
    ],
)
def test_many_kills(out: str, more: list[str], rounds: int, trained: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 300, shapes=out == "native")
    decoding = out in ("png", "npy")
    source = genkit.encode(trained, folder, tmp_path / "tokens", **BATCHES) if decoding else None
    args = ["decode" if source else "encode", str(trained)]
    args += [str(tmp_path / "tokens" if source else folder), *FLAGS, *more]
    whole = genkit_command(*args, "--out", tmp_path / "whole" / out)
    assert whole.returncode == 0, whole.stderr
    struck = 0
    for seed in range(rounds):
        struck += killed_until_done(args, tmp_path / f"{seed}" / out, kills=5, seed=seed)
        assert contents(tmp_path / f"{seed}" / out) == contents(tmp_path / "whole" / out)
        assert [path.name for path in (tmp_path / f"{seed}").iterdir()] == [out]
    assert struck >= 1
