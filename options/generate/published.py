"""Published figures: from the lines of headers to the section that `basicsr test` and `basicsr compare` show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SOURCES = {
    'R': "the authors' own files",
    'F': 'read off a published results figure',
    'K': 'the literature, not checked',
}


def section(label: str, line: str, sets: Iterable[str], ssim: str = '') -> dict[str, Any]:
    """``published`` of a test file; empty where the line has no figures.

    Args:
        label: the network's.
        line: 'Set5 33.04, Set14 29.23 [F]', or 'PSNR/SSIM [R]' of the only test set.
        sets: the file's test sets.
        ssim: SSIM on all of these sets.
    """
    names = list(sets)
    mark = re.search(r'\[([RFK])]', line)
    figures: dict[str, dict[str, float]] = {}
    if both := re.match(r'([\d.]+)/([\d.]+) ', line):
        figures[names[0]] = {'psnr': float(both[1]), 'ssim': float(both[2])}
    else:
        figures = {name: {'psnr': float(value)} for name, value in re.findall(r'(\w+) (\d+\.\d+)', line)}
    for name, value in zip(names, ssim.split(), strict=False):
        figures[name]['ssim'] = float(value)
    if not mark or not figures:
        return {}
    return {'source': f'{label}: {SOURCES[mark[1]]}; none measured by this plugin', 'figures': figures}
