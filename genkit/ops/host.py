"""Numbers that both a device and the host need."""

from __future__ import annotations

from torch import Tensor


class HostNumber:
    """The host's copy of a whole number in a buffer, which spares it waiting for the device.

    The buffer is read again after something else has written to it, such as a loaded state.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._version = self._value = -1

    def of(self, buffer: Tensor) -> int:
        """The buffer's number."""
        if self._buffer is not buffer or self._version != buffer._version:
            self._note(buffer, int(buffer))
        return self._value

    def add_one(self, buffer: Tensor) -> None:
        """Add 1 to the buffer."""
        value = self.of(buffer) + 1
        buffer += 1
        self._note(buffer, value)

    def _note(self, buffer: Tensor, value: int) -> None:
        self._buffer, self._version, self._value = buffer, buffer._version, value
