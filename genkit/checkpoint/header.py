"""The header of a safetensors file, read and checked without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from genkit.errors import CheckpointError
from genkit.files import is_file

HEADER_LIMIT = 100_000_000


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata and the tensors' entries of a safetensors file.

    `CheckpointError` if it is damaged or something else.
    """
    if not is_file(path):
        raise CheckpointError(f"there is no file '{path}'")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
                raise CheckpointError(no_checkpoint(path))
            header = json.loads(file.read(length).decode())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{path}' is not a safetensors file: its header is not JSON"
        ) from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not (
        all(isinstance(value, str) for value in metadata.values())
        and all(_is_entry(entry) for entry in header.values())
        and is_text("".join(header))
    ):
        raise CheckpointError(
            f"'{path}' is not a safetensors file: its header has another structure"
        )
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    announced = 8 + length + end
    if size != announced:
        raise CheckpointError(
            f"'{path}' is damaged: it has {size} bytes where its header announces {announced}; "
            "copy or save it again"
        )
    return metadata, header


def is_text(text: str) -> bool:
    """Whether `text` is valid Unicode; JSON may hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_entry(entry: Any) -> bool:
    def numbers(value: Any) -> bool:
        return isinstance(value, list) and all(
            type(number) is int and number >= 0 for number in value
        )

    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and numbers(entry.get("shape"))
        and numbers(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
        # Every value takes a byte or more; the rest is checked when the tensors are loaded.
        and math.prod(entry["shape"]) <= entry["data_offsets"][1] - entry["data_offsets"][0]
    )


_WANTED = "name a run directory, or a .safetensors file that genkit wrote"


def no_checkpoint(path: Path) -> str:
    """The message for a file that is not a whole safetensors file, judged by its first bytes."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        return f"'{path}' is empty: copy or save it again"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return (
            f"'{path}' is a pickle or an archive, which genkit never loads, since it can run any "
            f"code: {_WANTED}"
        )
    if start.startswith(b"version https://git-lfs"):
        return f"'{path}' is a Git LFS pointer, not a safetensors file: run `git lfs pull`"
    if start.isascii() and start.decode().replace("\n", " ").replace("\r", " ").isprintable():
        return f"'{path}' is a text file, not a safetensors file: {_WANTED}"
    return f"'{path}' is not a safetensors file, or was cut short: {_WANTED}, or copy it again"
