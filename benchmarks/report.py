"""What a part found, as markdown and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hat_plugin.compare.text import markdown_table
from hat_plugin.compare.timing import Spread
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
            blocks.append(markdown_table(self.columns, self.rows))
        return '\n\n'.join(blocks)


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
