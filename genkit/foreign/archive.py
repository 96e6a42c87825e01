"""Zip archives: PyTorch's files since 1.6, TorchScript, and one file packed for its publication."""

from __future__ import annotations

import io
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from torch import Tensor

from genkit.errors import CheckpointError
from genkit.foreign.bounded import DIRECTORY, Bounded, room
from genkit.foreign.machine import Machine
from genkit.foreign.names import Names
from genkit.foreign.tensors import Storages, allocated, persistent
from genkit.foreign.walk import Walk

# The longest pickle of an archive; the weights lie outside it.
_PICKLE = 2**28
_PACKED = (".ckpt", ".pt", ".pth", ".bin")
_AGAIN = "copy or download it again"


class Archive:
    """A zip archive whose list of entries is checked before any of them is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        with _sound():
            self._zip = zipfile.ZipFile(cast(IO[bytes], Bounded(file, DIRECTORY)))
            self._zip.fp = file
            entries = self._zip.infolist()
        for entry in entries:
            if not entry.CRC:  # PyTorch can leave out checksums; zipfile would find them wrong.
                del entry.CRC
        self.entries = {entry.filename: entry for entry in entries}
        places = {entry.header_offset for entry in entries}
        if not len(self.entries) == len(places) == len(entries):
            raise CheckpointError(f"two of its entries have one name or place; {_AGAIN}")
        if any(entry.compress_type not in (0, 8) or entry.flag_bits & 1 for entry in entries):
            raise CheckpointError("it is encrypted or packed in an unusual way; unpack it first")
        if sum(entry.file_size for entry in entries) > room(size):
            raise CheckpointError(
                f"its entries unpack to over {room(size)} bytes, more than weights do; unpack it "
                "yourself if you trust it"
            )

    def read(self, name: str, most: int = _PICKLE) -> bytes:
        """The content of an entry of up to `most` bytes."""
        if name not in self.entries or self.entries[name].file_size > most:
            raise CheckpointError(f"its entry '{name[:200]}' is missing or too long; {_AGAIN}")
        with _sound(), self._zip.open(self.entries[name]) as stream:
            return stream.read()

    def bytes(self, name: str, count: int) -> Tensor:
        """The `count` bytes of an entry."""
        entry = self.entries.get(name)
        if entry is None or entry.file_size != count:
            raise CheckpointError(
                f"its storage '{name[:200]}' is missing or of another size; {_AGAIN}"
            )
        values = allocated(count)
        if count:
            with _sound(), self._zip.open(entry) as stream:
                if cast(Any, stream).readinto(values.numpy()) != count:
                    raise EOFError("it ends early")
        return values

    def storages(self, folder: str, swapped: bool) -> Storages:
        """The storages in a folder of the archive."""
        return Storages(lambda key, count: self.bytes(f"{folder}/{key}", count), swapped)


def read_archive(archive: Archive, size: int) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, facts and form of a file of PyTorch."""
    pickles = _pickles(archive)
    if len(pickles) != 1:
        raise CheckpointError(_no_checkpoint(archive))
    folder = pickles[0].removesuffix("/data.pkl")
    swapped = sys.byteorder != "little"
    if f"{folder}/byteorder" in archive.entries:
        order = archive.read(f"{folder}/byteorder", 16)
        if order not in (b"little", b"big"):
            raise CheckpointError(f"its byte order is neither little nor big; {_AGAIN}")
        swapped = order.decode() != sys.byteorder
    walk = Walk(room(size))
    machine = Machine(Names(), persistent)
    data = machine.load(io.BytesIO(archive.read(pickles[0])))
    facts = walk.root(data, archive.storages(f"{folder}/data", swapped), machine.done)
    if f"{folder}/constants.pkl" not in archive.entries:
        return walk.tensors, facts, "PyTorch zip"
    # TorchScript's code calls them CONSTANTS.c0, CONSTANTS.c1 and so on.
    constants = machine.load(io.BytesIO(archive.read(f"{folder}/constants.pkl")))
    if isinstance(constants, tuple | list):
        named = {f"c{number}": value for number, value in enumerate(constants)}
        storages = archive.storages(f"{folder}/constants", swapped)
        walk.root({"CONSTANTS": named}, storages, machine.done)
    return walk.tensors, facts, "TorchScript"


def packed(archive: Archive) -> str | None:
    """The name of the one checkpoint that an archive packs, if it does."""
    if _pickles(archive):
        return None
    names = [
        name
        for name in archive.entries
        if name.endswith(_PACKED) and not name.startswith("__MACOSX/")
    ]
    return names[0] if len(names) == 1 else None


def _pickles(archive: Archive) -> list[str]:
    return [name for name in archive.entries if name.endswith("/data.pkl") and name.count("/") == 1]


def _no_checkpoint(archive: Archive) -> str:
    if any(name.endswith("/model.json") for name in archive.entries):
        return "it is TorchScript from before PyTorch 1.4; save it again with a newer PyTorch"
    return (
        "it is an archive without a checkpoint of PyTorch, or with several; unpack it and name the "
        "file with the model's weights"
    )


@contextmanager
def _sound() -> Iterator[None]:
    """Turns the errors of zipfile and zlib on damaged archives into `CheckpointError`."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
        *(ValueError, OSError, LookupError, OverflowError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"its archive is damaged ({reason}); {_AGAIN}") from error
