"""All parts in one table: how many times as fast and as lean as the first contender, the published code in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.networks import OURS
from benchmarks.report import Section

STEP = 'training step'


def summarise(records: Sequence[dict[str, Any]], clock: str) -> Section | None:
    """From the records of the parts inference, training and memory; None where there are none of them.

    Args:
        records: the first contender is the base of all.
        clock: 'wall' or 'cpu'.
    """
    base = None
    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for record in records:
        base = base or record.get('contender')
        kind, value = _value(record, clock)
        if value is not None:
            row = cells.setdefault((record['network'], record['contender'].removeprefix(f'{OURS} ')), {})
            row.setdefault(_column(record), {})[kind] = value
    if not cells:
        return None
    columns = sorted({column for row in cells.values() for column in row}, key=lambda text: (text == STEP, len(text)))
    section = Section('Summary', ('times as fast / as lean', *columns))
    section.notes.append(f'To {base}, by {"CPU" if clock == "cpu" else "wall"} time and by memory above the weights.')
    for (network, contender), row in cells.items():
        section.rows.append((f'{network} {contender}', *(_cell(row.get(column, {})) for column in columns)))
    return section


def _value(record: dict[str, Any], clock: str) -> tuple[str, float | None]:
    if not str(record.get('contender', '')).startswith(OURS):
        return '', None
    if record['part'] in ('inference', 'training'):
        return 'time', record['ratio'][clock]['median']
    if record['part'] in ('memory', 'training memory') and record['base_bytes'] and record['bytes']:
        return 'memory', record['base_bytes'] / record['bytes']
    return '', None


def _column(record: dict[str, Any]) -> str:
    return STEP if record['part'].startswith('training') else f'{record["side"]}x{record["side"]}'


def _cell(cell: dict[str, float]) -> str:
    time = f'{cell["time"]:.2f}' if 'time' in cell else '-'
    memory = f'{cell["memory"]:.1f}' if 'memory' in cell else '-'
    return f'{time} / {memory}'
