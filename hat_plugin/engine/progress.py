"""One progress bar for all long work: count, rate and ETA on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar('Item')


def progress(
    iterable: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    description: str = '',
    unit: str = 'image',
    initial: int = 0,
    disable: bool = False,
) -> tqdm[Item]:
    """A tqdm bar on stderr; on a stream that is no terminal it writes a line every 30 seconds at the most.

    Args:
        iterable: what to walk through; leave out to call ``update`` by hand.
        total: number of steps, where the iterable does not know its length.
        description: what is being done.
        unit: what one step is called.
        initial: steps done before (a resumed job).
        disable: no bar at all (ranks other than 0).
    """
    terminal = sys.stderr.isatty()
    options: dict[str, Any] = {'mininterval': 0.2 if terminal else 30.0, 'dynamic_ncols': terminal}
    return tqdm(iterable, total=total, desc=description, unit=f' {unit}', initial=initial, disable=disable, **options)
