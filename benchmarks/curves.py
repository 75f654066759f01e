"""The curve of a training from its log: the loss, and PSNR where it was validated."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import plot
from hat_plugin.errors import HatPluginError

LOSS = re.compile(r'iter:\s*([\d,]+),.* l_pix: (\S+)')
PSNR = re.compile(r'# psnr: (\S+)')


@dataclass
class Curve:
    """A training.

    Attributes:
        losses, psnr: (iteration, value).
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    psnr: list[tuple[int, float]] = field(default_factory=list)


def read(log: Path) -> Curve:
    """The curve in a log of ``basicsr train``; a validation belongs to the last iteration whose loss was logged.

    Raises:
        HatPluginError: it logs no loss.
    """
    curve, now = Curve(), 0
    for line in log.read_text(encoding='utf-8').splitlines():
        if found := LOSS.search(line):
            now = int(found[1].replace(',', ''))
            curve.losses.append((now, float(found[2])))
        elif found := PSNR.search(line):
            curve.psnr.append((now, float(found[1])))
    if not curve.losses:
        raise HatPluginError(f'{log}: logs no l_pix; give the log of a training (experiments/RUN/train_*.log)')
    return curve


def draw(path: Path, title: str, curve: Curve) -> None:
    """Write a PNG: loss on the left, PSNR on the right.

    Args:
        path: of the picture.
        title: above it.
        curve: what is drawn.
    """
    plot.require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    losses, psnr = figure.subplots(1, 2)
    losses.plot(*zip(*curve.losses, strict=True), linewidth=1)
    if curve.psnr:
        psnr.plot(*zip(*sorted(curve.psnr), strict=True), marker='o')
    losses.set(xlabel='iteration', ylabel='l_pix of one batch')
    psnr.set(xlabel='iteration', ylabel='PSNR of the test set, dB')
    for axes in (losses, psnr):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
