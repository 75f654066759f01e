"""Memory above the weights: inference by size, and the training step; each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import probe
from benchmarks.inference import CONTENDERS as INFERENCE
from benchmarks.networks import Contender
from benchmarks.probe import Task
from benchmarks.report import Section
from benchmarks.settings import Settings, say
from benchmarks.training import CONTENDERS as TRAINING
from hat_plugin.compare.text import megabytes

COLUMNS = ('', 'times leaner', 'peak above the weights', 'expected by the memory model')
UNKNOWN = '-'


def run(settings: Settings) -> Iterator[Section]:
    """A table for each network and size, and one for each network's training step."""
    for network in settings.networks:
        for side in settings.sizes:
            tasks = [Task(network, who, side) for who in settings.weighed(INFERENCE)]
            yield _section(f'Memory: {network} x4, LR {side}x{side}', tasks, settings)
        side, batch = settings.training_side, settings.batches[1]
        tasks = [Task(network, who, side, batch, trains=True) for who in settings.weighed(TRAINING)]
        yield _section(f'Memory of a training step: {network} x4, batch {batch}, LR {side}x{side}', tasks, settings)


def _section(title: str, tasks: Sequence[Task], settings: Settings) -> Section:
    section = Section(title, COLUMNS)
    if tasks[0].trains:
        section.notes.append("Gradients and Adam's state are in it.")
    base: int | None = None
    for number, task in enumerate(tasks):
        say(f'memory: {task.network}, {task.contender}, {task.side}x{task.side}{", training" if task.trains else ""}')
        finding = probe.run(probe.on(task, settings))
        used = finding.bytes if finding else None
        base = used if number == 0 else base
        estimate = finding.estimate if finding else None
        section.rows.append(
            (
                str(task.contender),
                f'{base / used:.1f}' if base and used else UNKNOWN,
                megabytes(used) if used is not None else 'does not fit',
                megabytes(estimate) if estimate is not None else UNKNOWN,
            )
        )
        section.records.append({**_case(task), 'bytes': used, 'base_bytes': base, 'estimate': estimate})
    return section


def _case(task: Task) -> dict[str, object]:
    part = 'training memory' if task.trains else 'memory'
    names: Contender = task.contender
    return {'part': part, 'network': task.network, 'side': task.side, 'batch': task.batch, 'contender': str(names)}
