"""What a part found, as markdown and as records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread
from hat_plugin.engine.files import write_text_atomic


@dataclass
class Section:
    """A heading, lines of text, a table and the same numbers for programs.

    Attributes:
        title: heading.
        columns: of the table; the first is flush left, the others right.
        rows: one text for each column.
        notes: paragraphs above the table.
        records: numbers of the rows, unrounded, JSON's types alone.
    """

    title: str
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        """Heading, notes and table."""
        blocks = [f'## {self.title}', *self.notes]
        if self.rows:
            blocks.append(table(self.columns, self.rows))
        return '\n\n'.join(blocks)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
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


def seconds(value: Spread) -> str:
    """'1.52 s [1.50, 1.61]', in milliseconds below one second."""
    scale, unit = (1, 's') if value.median >= 1 else (1000, 'ms')
    digits = max(0, 2 - math.floor(math.log10(max(value.median * scale, 1e-9))))
    numbers = [f'{number * scale:.{digits}f}' for number in (value.median, value.low, value.high)]
    return f'{numbers[0]} {unit} [{numbers[1]}, {numbers[2]}]'


def megabytes(number: float) -> str:
    """Bytes as '1,234 MB' (10**6 bytes)."""
    return f'{number / 1e6:,.0f} MB'


def plain(value: Spread) -> dict[str, float]:
    """For a record."""
    return asdict(value)


class ResultFile:
    """``<date>_<machine>.md`` in a folder, written anew after each part, so that a run cut short keeps what it has."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Find a name that is not taken: an earlier run of the same day stays as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        number, name = 1, stem
        while (folder / f'{name}.md').exists():
            number += 1
            name = f'{stem}_{number}'
        self.path = folder / f'{name}.md'
        self.blocks: list[str] = []

    def add(self, block: str, at: int | None = None) -> None:
        """Add a block of markdown, last, or as number `at` from zero."""
        self.blocks.insert(len(self.blocks) if at is None else at, block)
        write_text_atomic(self.path, '\n\n'.join(self.blocks) + '\n')

    def beside(self, ending: str) -> Path:
        """A file of the same run: ``<date>_<machine>_<ending>``."""
        return self.path.with_name(f'{self.path.stem}_{ending}')
