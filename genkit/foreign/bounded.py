"""A file whose single reads are bounded, since a file may announce any length."""

from __future__ import annotations

from typing import IO

from genkit.errors import CheckpointError

# The longest string or array inside a pickle, and the longest list of entries of a zip archive.
LONGEST, DIRECTORY = 2**26, 2**24


def room(size: int) -> int:
    """The bytes that a file of `size` bytes may unpack to, as entries or as tensors.

    Weights hardly shrink, so that real files stay far below; a small file of zeros may shrink much.
    """
    return 4 * size + 2**26


class Bounded:
    """Passes on the reads of a file, but refuses to read over `longest` bytes at once."""

    def __init__(self, file: IO[bytes], longest: int = LONGEST) -> None:
        self._file, self._longest = file, longest
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes, or fewer at the end of the file."""
        if count > self._longest:
            raise CheckpointError(
                f"it announces a piece of {count} bytes where genkit reads up to {self._longest}; "
                "copy or download it again, or convert it to safetensors"
            )
        return self._file.read(self._longest if count < 0 else count)

    def readline(self) -> bytes:
        """The bytes up to the next end of a line."""
        return self._file.readline(self._longest)
