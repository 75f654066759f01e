"""What was found, as drawings for the report: SVG, so that they can be enlarged and edited."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hat_plugin.compare.tables import Result

_LOOK = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'hat_plugin',
    'font.size': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
}


def drawings(result: Result) -> dict[str, str]:
    """Name -> SVG: figures against cost, and differences picture by picture, of each test set's first metric."""
    found = {}
    for dataset in result.findings:
        if not result.measured(dataset):
            continue
        metric = result.measured(dataset)[0]
        found[f'{dataset}: {metric} against cost'] = against_cost(result, dataset, metric)
        if len(result.labels) > 1:
            found[f'{dataset}: {metric}, picture by picture'] = by_picture(result, dataset, metric)
    return found


def against_cost(result: Result, dataset: str, metric: str) -> str:
    """A dot for each network: cost to the right, the metric upwards, as large as it has parameters."""
    timed = all(cost.seconds for cost in result.costs.values())
    with _figure(6.4, 4.0) as (axes, svg):
        for number, (label, cost) in enumerate(result.costs.items()):
            x = cost.seconds.median if timed and cost.seconds else (cost.macs.total / 1e9 if cost.macs else 0.0)
            y = result.findings[dataset][label].mean(metric)
            axes.scatter(x, y, s=30 + 40 * cost.parameters / 1e6, color=f'C{number}', alpha=0.8)
            axes.annotate(f'{label} ({cost.parameters / 1e6:.2f} M)', (x, y), (6, 6), textcoords='offset points')
        axes.set_xlabel('seconds' if timed else 'MACs, G')
        axes.set_ylabel(f'{metric}, {dataset}')
        axes.margins(y=0.15)
        axes.set_xlim(0, 1.3 * axes.get_xlim()[1])  # room for the names
        axes.grid(alpha=0.3)
    return svg.getvalue()


def by_picture(result: Result, dataset: str, metric: str) -> str:
    """Each network's difference to the first on every picture, in order of the first network's figures."""
    scores, first = result.findings[dataset], result.labels[0]
    base = scores[first].values(metric)
    order = base.argsort(kind='stable')
    with _figure(6.4, 4.0) as (axes, svg):
        axes.axhline(0, color='0.3', linewidth=1)
        for number, label in enumerate(result.labels[1:], 1):
            apart = (scores[label].values(metric) - base)[order]
            axes.plot(range(1, len(apart) + 1), apart, 'o', markersize=4, color=f'C{number}', label=label)
        axes.set_xlabel(f'pictures, in order of the {metric} of {first}')
        axes.set_ylabel(f'{metric}, difference to {first}')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    return svg.getvalue()


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """Axes to draw in, and where the SVG stands afterwards."""
    svg = io.StringIO()
    with rc_context(_LOOK):
        drawing = Figure(figsize=(width, height), layout='constrained')
        yield drawing.add_subplot(), svg
        drawing.savefig(svg, format='svg', metadata={'Date': None})
