"""The comparison's page, and the files beside it: tables for people, papers and programs, a figure, all pictures."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from hat_plugin.compare import gallery, plots, tables
from hat_plugin.compare.gallery import Part
from hat_plugin.compare.maps import MappedPart
from hat_plugin.compare.measuring import TRUTH, picture_file
from hat_plugin.compare.tables import Result
from hat_plugin.engine.files import write_text_atomic

PAGE, TABLES, LATEX, CSV, JSON, FIGURE = (
    'report.html',
    'report.md',
    'table.tex',
    'pictures.csv',
    'report.json',
    'figure.png',
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table on the page.

    Attributes:
        text: what stands in it.
        place: 1 for the best of its column, 2 for the second, 0 for all else.
    """

    text: str
    place: int = 0


def write(result: Result, folder: Path, shown: list[Part], mapped: list[MappedPart]) -> Path:
    """Write everything into the comparison's folder; the page last.

    Args:
        result: what was found.
        folder: with the pictures.
        shown: parts of pictures for the figure.
        mapped: attribution maps.

    Returns:
        The page.
    """
    if shown:
        gallery.draw(result, folder, shown, folder / FIGURE)
    write_text_atomic(folder / TABLES, tables.markdown(result))
    write_text_atomic(folder / LATEX, tables.latex(result))
    write_text_atomic(folder / CSV, tables.comma_separated(result))
    record = {**tables.record(result), 'diffusion': [part.record() for part in mapped]}
    write_text_atomic(folder / JSON, json.dumps(record, indent=1) + '\n')
    write_text_atomic(folder / PAGE, page(result, folder, shown, mapped))
    return folder / PAGE


def page(result: Result, folder: Path, shown: list[Part], mapped: list[MappedPart]) -> str:
    """The page: HTML without anything from elsewhere but the pictures beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('hat_plugin.compare'), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    differences = tables.difference_rows(result)
    return environment.get_template('report.html').render(
        name=result.comparison.name,
        figures=_figures(result),
        costs=_plain(tables.cost_rows(result)),
        differences=_plain(differences) if differences[1] else None,
        protocol=tables.protocol_lines(result),
        machine=[line.removeprefix('- ') for line in result.machine],
        drawings={name: _as_image(svg) for name, svg in plots.drawings(result).items()},
        figure=FIGURE if shown else None,
        mapped=mapped,
        viewer=Markup(_script_json(viewer(result, folder, shown))),
        files=[TABLES, LATEX, CSV, JSON],
    )


def _figures(result: Result) -> tuple[list[str], list[list[Cell]]]:
    columns, rows = tables.figures(result)
    cells = []
    for row in rows:
        ranks = row.ranks if len(result.labels) > 1 and row.ranks else [0] * len(columns)
        places = [rank if rank <= 2 else 0 for rank in ranks]
        cells.append([Cell(row.who), *map(Cell, row.cells, places)])
    return ['', *columns], cells


def _plain(table: tuple[list[str], list[list[str]]]) -> tuple[list[str], list[list[Cell]]]:
    return table[0], [[Cell(text) for text in row] for row in table[1]]


def _as_image(svg: str) -> str:
    """A drawing as an address: whatever names stand in it, the page's own elements are not touched."""
    return 'data:image/svg+xml;base64,' + base64.b64encode(svg.encode()).decode('ascii')


def _script_json(value: Any) -> str:
    """JSON that may stand in a script element, whatever its strings hold."""
    return json.dumps(value).replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def viewer(result: Result, folder: Path, shown: list[Part]) -> dict[str, Any]:
    """What the page's viewer knows: every picture by everybody, and where the shown parts lie."""
    metric = {dataset: result.measured(dataset)[:1] for dataset in result.findings}
    pictures = []
    for dataset, scores in result.findings.items():
        for picture in scores[result.baseline].pictures:
            files, notes = {}, {}
            for who in [result.baseline, *result.labels, TRUTH]:
                file = picture_file(folder, dataset, picture, who)
                if file.is_file():
                    files[who] = quote(file.relative_to(folder).as_posix())
                    found = scores[who].pictures[picture] if who in scores else {}
                    notes[who] = ', '.join(f'{name} {found[name]:.4g}' for name in metric[dataset] if name in found)
            pictures.append({'name': f'{dataset} / {picture}', 'files': files, 'notes': notes})
    names = [picture['name'] for picture in pictures]
    first = f'{shown[0].dataset} / {shown[0].picture}' if shown else names[0]
    sides = [result.labels[0], result.labels[1] if len(result.labels) > 1 else result.baseline]
    return {'pictures': pictures, 'first': names.index(first), 'left': sides[1], 'right': sides[0]}
