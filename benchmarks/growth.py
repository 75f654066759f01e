"""Cost as the picture grows: time and memory of a forward pass, a process for each size, as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import plot, probe
from benchmarks.networks import OURS, PUBLISHED, Contender
from benchmarks.probe import Finding, Task
from benchmarks.report import Section
from benchmarks.settings import Settings, say
from hat_plugin.compare.text import megabytes
from hat_plugin.engine.memory import available_bytes

CONTENDERS = (Contender(PUBLISHED), Contender(OURS), Contender(OURS, 'bf16'))
SECONDS = 5.0  # a size is repeated for so long; the fastest counts


def run(settings: Settings) -> Iterator[Section]:
    """One table, and where `settings.plot` is given a picture of it."""
    network = settings.networks[0]
    findings: dict[Contender, dict[int, Finding]] = {who: {} for who in settings.weighed(CONTENDERS)}
    for who in findings:
        for side in sorted(settings.growth_sizes):
            finding = _measure(network, who, side, findings[who], settings)
            if finding is not None:
                findings[who][side] = finding
    section = _section(network, findings, settings)
    if settings.plot is not None:
        plot.draw(settings.plot, f'{network} x4', settings.clock, {str(who): found for who, found in findings.items()})
        section.notes.append(f'![time and memory over the side of the picture]({settings.plot.name})')
    yield section


def _measure(
    network: str, who: Contender, side: int, smaller: dict[int, Finding], settings: Settings
) -> Finding | None:
    """None where the memory does not suffice, which is not tried where the last size tells."""
    if smaller and settings.device.type == 'cpu':
        last = max(smaller)
        if smaller[last].bytes * (side / last) ** 2 > probe.USABLE * available_bytes():
            return None
    say(f'growth: {network}, {who}, {side}x{side}')
    seconds = min(SECONDS, max(settings.plan.budget, 1e-3))
    return probe.run(probe.on(Task(network, who, side, seconds=seconds), settings))


def _section(network: str, findings: dict[Contender, dict[int, Finding]], settings: Settings) -> Section:
    clock = 'CPU' if settings.clock == 'cpu' else 'wall'
    columns = ['LR side', *(f'{who}: {clock} time, memory' for who in findings)]
    section = Section(f'Growth: {network} x4, one forward pass', columns)
    section.notes.append('Memory above the weights; in brackets: times as fast and times as lean as the first column.')
    for side in sorted(settings.growth_sizes):
        found = {who: by_side.get(side) for who, by_side in findings.items()}
        base = next(iter(found.values()))
        section.rows.append((str(side), *(_cell(finding, base, settings.clock) for finding in found.values())))
        section.records += [
            {
                'part': 'growth',
                'network': network,
                'side': side,
                'contender': str(who),
                'wall': finding.seconds('wall') if finding else None,
                'cpu': finding.seconds('cpu') if finding else None,
                'bytes': finding.bytes if finding else None,
            }
            for who, finding in found.items()
        ]
    return section


def _cell(finding: Finding | None, base: Finding | None, clock: str) -> str:
    if finding is None:
        return 'does not fit'
    seconds = finding.seconds(clock)
    text = f'{seconds:.2f} s, {megabytes(finding.bytes)}'
    if base is None or base is finding or not finding.bytes:
        return text
    return f'{text} ({base.seconds(clock) / seconds:.1f}, {base.bytes / finding.bytes:.1f})'
