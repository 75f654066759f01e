"""Readers of command-line values that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """A reader, for argparse's `type`, of whole numbers that are at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is no whole number from {least} on')
        return int(text)

    return read
