"""Contenders measured in turns beside the matrix products that bound them, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import limits, report
from benchmarks.networks import SWINIR, Contender
from benchmarks.report import Section
from benchmarks.settings import Settings
from hat_plugin.compare.text import megabytes, seconds
from hat_plugin.compare.timing import Call, Sample, Spread, alternate, cuda_peak, ratios, spread

COLUMNS = ('', 'times as fast', 'by the other clock', 'wall time', 'CPU time', 'x GEMM limit', 'difference')
PEAK = 'peak memory'  # on a GPU, above what is allocated between calls
LEGEND = (
    'Times as fast as the first row: the median, over rounds in which the contenders take turns, of the ratio within a '
    'round, with its quartiles. x GEMM limit: time by what its multiplications would take alone, at the rate that the '
    'faster of two products of HAT reached in the same rounds.'
)


@dataclass(frozen=True)
class Entry:
    """A contender ready to run.

    Attributes:
        contender: who.
        call: the work that is timed.
        flops: in its matrix products and convolutions.
        difference: between its result and the first entry's; None where they compute different things.
    """

    contender: Contender
    call: Call
    flops: float
    difference: float | None


def compare(title: str, case: dict[str, Any], entries: Sequence[Entry], settings: Settings) -> Section:
    """Measure, the first entry being what the others are compared with.

    Args:
        title: of the table.
        case: what is the same for all rows of it, for the records.
        entries: the contenders.
        settings: device, clock and plan.
    """
    dtypes = dict.fromkeys(entry.contender.dtype for entry in entries)
    calls: dict[str, Call] = {str(entry.contender): entry.call for entry in entries}
    for dtype in dtypes:
        calls |= limits.products(settings.device, dtype)
    samples = alternate(calls, settings.device, settings.plan)
    on_gpu = settings.device.type == 'cuda'
    section = Section(title, (*COLUMNS, PEAK) if on_gpu else COLUMNS)
    speeds: dict[torch.dtype, float] = {}
    for dtype in dtypes:
        measured = {
            name: spread(values)
            for name, values in limits.rates(samples, settings.device, dtype, settings.clock).items()
        }
        speeds[dtype] = max(value.median for value in measured.values())
        section.notes.append(_limit_note(dtype, measured))
        section.records += [
            {**case, 'product': name, 'precision': limits.short(dtype), 'flops_per_second': report.plain(value)}
            for name, value in measured.items()
        ]
    base = samples[str(entries[0].contender)]
    for entry in entries:
        taken = samples[str(entry.contender)]
        limit = entry.flops / speeds[entry.contender.dtype]
        _add_row(section, case, entry, limit, settings.clock, base, taken)
        if on_gpu:  # graphs keep theirs between calls
            peak = None if entry.contender.graphs else cuda_peak(entry.call, settings.device)
            section.rows[-1] = (*section.rows[-1], '-' if peak is None else megabytes(peak))
            section.records[-1]['peak'] = peak
    section.notes.append(f'{len(base)} rounds.')
    return section


def _add_row(
    section: Section,
    case: dict[str, Any],
    entry: Entry,
    limit: float,
    clock: str,
    base: Sequence[Sample],
    taken: Sequence[Sample],
) -> None:
    ratio = {name: ratios(base, taken, name) for name in ('wall', 'cpu')}
    times = {name: spread([sample.seconds(name) for sample in taken]) for name in ('wall', 'cpu')}
    distance = times[clock].median / limit
    other = 'cpu' if clock == 'wall' else 'wall'
    section.rows.append(
        (
            str(entry.contender),
            _times(ratio[clock]),
            f'{ratio[other].median:.2f} ({other})',
            seconds(times['wall']),
            seconds(times['cpu']),
            f'{distance:.1f}',
            _difference(entry),
        )
    )
    section.records.append(
        {
            **case,
            'contender': str(entry.contender),
            'ratio': {name: report.plain(value) for name, value in ratio.items()},
            'seconds': {name: report.plain(value) for name, value in times.items()},
            'rounds': len(taken),
            'times_the_limit': distance,
            'difference': entry.difference,
        }
    )


def _difference(entry: Entry) -> str:
    if entry.contender.code == SWINIR:
        return 'another network'
    return '-' if entry.difference is None else f'{entry.difference:.1e}'


def _times(ratio: Spread) -> str:
    return f'{ratio:.2f}'


def _limit_note(dtype: torch.dtype, measured: dict[str, Spread]) -> str:
    rates = '; '.join(f'{name} {value.median / 1e9:,.0f} GFLOP/s' for name, value in measured.items())
    return f'{limits.short(dtype)}: {rates}.'
