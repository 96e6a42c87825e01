"""Checkpoints of other projects that are refused: kinds of tensors, other files, sizes."""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import CheckpointError
from genkit.foreign import machine
from genkit.foreign.read import read_checkpoint

FORMS = pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), "is complex"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "is quantized"),
        (lambda: torch.eye(2).to_sparse(), "is sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "is sparse"),
        (lambda: torch.zeros(2, device="meta"), "lies on the meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "is nested"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "is a conjugate"),
    ],
    ids=range(7),
)
@FORMS
def test_tensors_of_other_kinds_are_refused_by_name(
    tmp_path: Path, make: Callable[[], Tensor], reason: str, new: bool
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"net": {"odd": make()}}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=f"its tensor 'net.odd' {reason}"):
        read_checkpoint(path)


def test_complex_tensors_of_safetensors_are_refused(tmp_path: Path) -> None:
    entry = {"odd": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}
    header = json.dumps(entry).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    # Older versions of safetensors do not know the type.
    with pytest.raises(CheckpointError, match=r"its tensor 'odd' is complex|of unknown types"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_more_tensors_are_refused_by_name(tmp_path: Path, foreign: Any) -> None:
    kind = foreign("their.Scaled", Tensor)
    torch.save({"odd": torch.ones(2).as_subclass(kind)}, tmp_path / "x.pt")
    foreign.forget()
    with pytest.raises(CheckpointError, match="its tensor 'odd' is of a class of its own"):
        read_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"odd": torch.ones(2)}, 2))
    with pytest.raises(CheckpointError, match=r"its tensor 'odd' was pickled without torch\.save"):
        read_checkpoint(tmp_path / "x.pkl")
    # One element takes the place of millions of millions.
    torch.save({"odd": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="far larger than the file"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"two of its tensors have the name 'a\.b'"):
        read_checkpoint(tmp_path / "x.pt")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"))


def _zipped(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"x")

    return write


def _cut(count: int, new: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"a": torch.ones(99)}, path, _use_new_zipfile_serialization=new)
        path.write_bytes(path.read_bytes()[:count])

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "there is no file"),
        (Path.mkdir, "there is no file"),
        (Path.touch, "it is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec"), "LFS pointer"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
        (lambda path: path.write_text("hello"), "it is no checkpoint"),
        (_tar, "tar archive"),
        (_zipped("weights.npy"), "without a checkpoint"),
        (_zipped("m/model.json"), "before PyTorch 1.4"),
        (_cut(600, True), "archive is damaged"),
        (_cut(200, False), "pickle is damaged"),
        (_cut(-9, False), "was cut short"),
        (lambda path: torch.save({"a": 1}, path), "holds no tensors"),
        (lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}"), "holds no tensors"),
        (lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}x"), "is damaged"),
        (lambda path: path.write_bytes(pickle.dumps([])), "holds no tensors"),
    ],
    ids=range(16),
)
def test_other_files_are_refused_with_a_reason(
    tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_long_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(each): torch.ones(1) for each in range(20)}, tmp_path / "x.pt")
    monkeypatch.setattr(machine, "OPCODES", 500)
    with pytest.raises(CheckpointError, match="over 500 opcodes"):
        read_checkpoint(tmp_path / "x.pt")


@FORMS
def test_files_larger_than_the_memory(
    tmp_path: Path, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(5)}, path, _use_new_zipfile_serialization=new)

    def full(*args: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(CheckpointError, match="takes 20 bytes, more memory than is free"):
            read_checkpoint(path)

    def none(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(machine.Machine, "load", none)
    with pytest.raises(CheckpointError, match="takes more memory than is free"):
        read_checkpoint(path)
