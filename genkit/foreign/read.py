"""Reads a checkpoint of any project: its tensors by name, and the facts beside them."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genkit.checkpoint.header import read_header
from genkit.errors import CheckpointError
from genkit.files import expanded, is_file, printable
from genkit.foreign.archive import Archive, packed, read_archive
from genkit.foreign.bounded import DIRECTORY, room
from genkit.foreign.legacy import read_pickles
from genkit.foreign.tensors import readable, refusal

Content = tuple[dict[str, Tensor], dict[str, Any], str]
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Foreign:
    """The content of another project's checkpoint.

    `tensors` lie on the CPU under dotted names, with the types that the file has, and may share
    storages. `facts` are plain values, such as hyperparameters, nested as in the file. `format`
    is a phrase for people, and `sha256` the hash of the file.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    format: str
    sha256: str


def read_checkpoint(path: str | os.PathLike[str]) -> Foreign:
    """Read a checkpoint as data alone: nothing that it names is imported or run.

    It may be safetensors, a file of `torch.save` in its new or old form, a pickled module,
    TorchScript, or a zip archive with one of these. `CheckpointError` says why a file is refused.
    """
    place = expanded(path)
    if not is_file(place):
        raise CheckpointError(f"there is no file '{path}': name the file with the model's weights")
    try:
        with place.open("rb") as file:
            state = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            tensors, facts, form = _content(file, state.st_size, place)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except CheckpointError as error:
        text = str(error)
        if f"'{place}'" not in text:  # The header's reader names the file itself.
            text = f"'{path}' cannot be read: {printable(text)}"
        raise CheckpointError(text) from error
    except RecursionError:
        raise CheckpointError(f"'{path}' cannot be read: it is nested too deeply") from None
    except MemoryError:
        raise CheckpointError(
            f"'{path}' cannot be read: it takes more memory than is free; use a machine with more"
        ) from None
    if (after.st_size, after.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
        raise CheckpointError(f"'{path}' was changed while it was read: read it again")
    if not tensors:
        raise CheckpointError(f"'{path}' holds no tensors: name the file with the model's weights")
    return Foreign(tensors, facts, form, digest)


def _content(file: IO[bytes], size: int, place: Path | None) -> Content:
    """The content of a file; without `place`, of the only file of an archive."""
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    length = int.from_bytes(start[:8], "little")
    if place and start[8:9] == b"{" and length <= size - 8:
        if length > DIRECTORY:
            raise CheckpointError("its header is too long; copy or download it again")
        return _safetensors(place)
    if start.startswith(_ZIP):
        archive = Archive(file, size)
        inner = packed(archive) if place else None
        if inner is None:
            return read_archive(archive, size)
        content = archive.read(inner, room(size))
        tensors, facts, form = _content(io.BytesIO(content), len(content), None)
        return tensors, facts, f"{form}, in a zip archive"
    if start[:1] == b"\x80":
        return read_pickles(file, size)
    raise CheckpointError(_unknown(start))


def _safetensors(place: Path) -> Content:
    facts, _ = read_header(place)
    try:
        tensors = load_file(place)
    except (SafetensorError, RuntimeError, LookupError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"its entries are damaged or of unknown types ({reason}); copy or download it again"
        ) from error
    for name, tensor in tensors.items():
        if not readable(tensor.dtype):
            raise CheckpointError(f"its tensor '{name}' {refusal(tensor.dtype)}")
    return tensors, dict(facts), "safetensors"


def _unknown(start: bytes) -> str:
    """The reason to refuse a file that begins like this."""
    if not start:
        return "it is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    if start[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.10 wrote; save it with a newer PyTorch"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, not a checkpoint; download the file itself"
    return "it is no checkpoint of PyTorch or safetensors, or was damaged; name or copy another"
