"""Ctrl-C and SIGTERM ask the training loop to save and stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, 'SIGUSR1') else []))


class StopRequest:
    """Within the ``with`` block the first SIGINT, SIGTERM or SIGUSR1 (Slurm's warning) sets `number`, no more.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none came."""
        return 0 if self.number is None else 128 + self.number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread: somebody else handles signals
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
