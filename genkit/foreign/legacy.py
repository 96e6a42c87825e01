"""Files of PyTorch before 1.6, five pickles and raw storages after them; and plain pickles."""

from __future__ import annotations

import sys
from typing import IO, Any, cast

from torch import Tensor

from genkit.errors import CheckpointError
from genkit.foreign.bounded import room
from genkit.foreign.inert import Storage
from genkit.foreign.machine import Machine
from genkit.foreign.names import Names
from genkit.foreign.tensors import Storages, allocated, persistent
from genkit.foreign.walk import Walk

_MAGIC = 0x1950A86A20F9469CFC6C
_AGAIN = "copy or download it again"


def read_pickles(file: IO[bytes], size: int) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, facts and form of a file that begins with a pickle."""
    known: dict[str, Storage] = {}

    def refer(reference: Any) -> Any:
        storage = persistent(reference)
        if isinstance(storage, Storage):
            known[storage.key] = storage
        return storage

    machine = Machine(Names(), refer)
    walk = Walk(room(size))
    first = machine.load(file)
    if first != _MAGIC:
        return walk.tensors, walk.root(first, Storages(_none), machine.done), "pickle"
    machine.load(file)  # The version.
    machine.load(file)  # The sizes of C's types where it was written.
    data = machine.load(file)
    places = _places(file, size, machine.load(file), known)

    def load(key: str, count: int) -> Tensor:
        start, stored = places.get(key, (0, -1))
        if count != stored:
            raise CheckpointError(f"a storage of it has another size than it states; {_AGAIN}")
        file.seek(start)
        values = allocated(count)
        if count and cast(Any, file).readinto(values.numpy()) != count:
            raise CheckpointError(f"it was cut short; {_AGAIN}")
        return values

    # PyTorch writes this form in little-endian order on every machine.
    storages = Storages(load, swapped=sys.byteorder != "little")
    facts = walk.root(data, storages, machine.done)
    return walk.tensors, facts, "PyTorch before 1.6"


def _places(
    file: IO[bytes], size: int, keys: Any, known: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """The start and the number of bytes of each storage behind the pickles."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"it does not list its storages; {_AGAIN}")
    places: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        dtype = known[key].dtype if key in known else None
        stored = count * (dtype.itemsize if dtype else 1)
        if key not in known or key in places or position + 8 + stored > size:
            raise CheckpointError(f"it was cut short, or its storages are damaged; {_AGAIN}")
        places[key] = position + 8, stored
        position += 8 + stored
    return places


def _none(key: str, count: int) -> Tensor:
    raise CheckpointError("its pickle refers to storages that it lacks; name the file with both")
