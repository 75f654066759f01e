"""Numbers and tables as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from hat_plugin.compare.timing import Spread


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with its columns aligned in the source as well.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    cells = [[cell.replace('|', '\\|') for cell in row] for row in (columns, *rows)]
    if any(len(row) != len(columns) for row in cells):
        raise ValueError(f'a row has other than {len(columns)} cells: {rows}')
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(columns))]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (cells[0], rule, *cells[1:])
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def figure(value: float) -> str:
    """A metric's value: two decimals from 1 upwards (dB), four below (SSIM, LPIPS)."""
    return f'{value:.2f}' if abs(value) >= 1 or math.isnan(value) else f'{value:.4f}'


def spread_figure(values: Sequence[float]) -> str:
    """A metric's mean over seeds, with their standard deviation; of one seed its figure."""
    mean = figure(statistics.fmean(values))
    if len(values) < 2:
        return mean
    digits = len(mean.partition('.')[2])
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def signed(value: float) -> str:
    """A difference: three decimals, four where it is small."""
    return f'{value:+.3f}' if abs(value) >= 0.1 else f'{value:+.4f}'


def seconds(value: Spread) -> str:
    """'1.52 s [1.50, 1.61]', in milliseconds below one second."""
    scale, unit = (1, 's') if value.median >= 1 else (1000, 'ms')
    digits = max(0, 2 - math.floor(math.log10(max(value.median * scale, 1e-9))))
    numbers = [f'{number * scale:.{digits}f}' for number in (value.median, value.low, value.high)]
    return f'{numbers[0]} {unit} [{numbers[1]}, {numbers[2]}]'


def megabytes(number: float) -> str:
    """Bytes as '1,234 MB' (10**6 bytes)."""
    return f'{number / 1e6:,.0f} MB'


def gigas(number: int | None) -> str:
    """'12.3 G'."""
    return '-' if number is None else f'{number / 1e9:.1f} G'
