"""Time and memory over the side of the picture, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.probe import Finding
from hat_plugin.errors import HatPluginError


def require() -> None:
    """Look for what draws, before hours of measuring.

    Raises:
        HatPluginError: there is no matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise HatPluginError(f'the plot of --part growth needs matplotlib: pip install matplotlib ({error})') from error


def draw(path: Path, title: str, clock: str, findings: Mapping[str, Mapping[int, Finding]]) -> None:
    """Write a PNG with two panels, both axes logarithmic.

    Args:
        path: of the picture.
        title: above it.
        clock: 'wall' or 'cpu'.
        findings: name -> side -> what was found.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout='constrained')
    FigureCanvasAgg(figure)
    time_axes, memory_axes = figure.subplots(1, 2)
    for name, by_side in findings.items():
        sides = sorted(by_side)
        style = {'marker': 'o', 'label': name, 'linestyle': '--' if name.startswith('published') else '-'}
        time_axes.plot(sides, [by_side[side].seconds(clock) for side in sides], **style)
        memory_axes.plot(sides, [by_side[side].bytes / 1e6 for side in sides], **style)
    every = sorted({side for by_side in findings.values() for side in by_side})
    for axes, label in ((time_axes, f'{clock} time, s'), (memory_axes, 'memory above the weights, MB')):
        axes.set(xlabel='side of the LR picture, pixels', ylabel=label)
        axes.set_xscale('log')
        axes.set_yscale('log', base=2)
        axes.yaxis.set_major_formatter('{x:g}')
        axes.set_xticks(every, labels=[str(side) for side in every])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
