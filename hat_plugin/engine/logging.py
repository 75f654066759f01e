"""The run's log, in BasicSR's logger and format: to the terminal at once, to a file once the run's folder exists."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Iterator
from contextlib import contextmanager

from basicsr.utils import get_root_logger

_LONG_MESSAGE = 10  # lines
_FORMAT = logging.Formatter('%(asctime)s %(levelname)s: %(message)s')


class RunLogger:
    """Holds back what the file should say until it is known that the run starts.

    A failed start thus leaves no file and no folder behind, and a good one has its whole beginning in the file.

    Args:
        is_main: rank 0 logs INFO to terminal and file; other ranks log errors to the terminal alone.
    """

    def __init__(self, is_main: bool) -> None:
        self.logger = get_root_logger()
        self.logger.setLevel(logging.INFO if is_main else logging.ERROR)
        self._buffer = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
        self._file: logging.FileHandler | None = None
        self._is_main = is_main
        if is_main:
            self.logger.addHandler(self._buffer)
        # What this plugin's modules say (a skipped picture, a smaller tile) goes where BasicSR's messages go.
        self._plugin = logging.getLogger('hat_plugin')
        self._plugin.parent, self._parent = self.logger, self._plugin.parent
        self._plugin.setLevel(self.logger.level)

    def open_file(self, path: str | os.PathLike[str]) -> None:
        """Write what was held back to `path`, and all that follows."""
        if not self._is_main:
            return
        self._file = logging.FileHandler(path, 'w', encoding='utf-8')
        self._file.setFormatter(_FORMAT)
        self._buffer.setTarget(self._file)
        self._buffer.close()
        self.logger.removeHandler(self._buffer)
        self.logger.addHandler(self._file)

    def close(self) -> None:
        """Detach from BasicSR's logger; it may serve another run in the same process."""
        self._plugin.parent = self._parent
        self.logger.removeHandler(self._buffer)
        if self._file is not None:
            self.logger.removeHandler(self._file)
            self._file.close()


@contextmanager
def short_messages() -> Iterator[None]:
    """Keep the longest messages, the options and the machine's description say, off the terminal; the file has them."""

    def is_short(record: logging.LogRecord) -> bool:
        return record.getMessage().count('\n') < _LONG_MESSAGE

    terminals = [handler for handler in get_root_logger().handlers if type(handler) is logging.StreamHandler]
    for handler in terminals:
        handler.addFilter(is_short)
    try:
        yield
    finally:
        for handler in terminals:
            handler.removeFilter(is_short)
