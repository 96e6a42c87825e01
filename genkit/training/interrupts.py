"""Ctrl-C and other signals to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

import torch

from genkit.distributed import all_sum, processes
from genkit.signals import stop_signals

_CHECK_EVERY = 10


class Interrupts:
    """Turns Ctrl-C and the other signals to stop into a question that the loop asks.

    Only Ctrl-C after one of them interrupts at once: of the others several may come, such as from a
    terminal and its shell, or from a scheduler and a launcher.
    """

    def __enter__(self) -> Self:
        # The number of the first signal, 0 before one comes.
        self.signal = 0
        self._before = {
            name: signal.signal(name, self._handle) for name in (signal.SIGINT, *stop_signals())
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def agreed(self, step: int, device: torch.device) -> bool:
        """Whether to stop before this step.

        Several processes agree; where asking makes the device wait, they ask only now and then.
        """
        if processes() == 1:
            return bool(self.signal)
        if device.type != "cpu" and step % _CHECK_EVERY:
            return False
        return bool(all_sum(torch.tensor(float(bool(self.signal)), device=device)) > 0)
