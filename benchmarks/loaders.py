"""How fast loaders of two workers deliver: this plugin's, and BasicSR's on its own data set."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.settings import Settings
from hat_plugin.compare.timing import Sample
from hat_plugin.data.build import build_dataset
from hat_plugin.data.loader import build_train_loader
from hat_plugin.engine.stages import Stages

WORKERS, BATCH = 2, 8
# Batches that wait in a queue while other loaders have their turn: torch's two for each worker, and one in hand.
_AHEAD = 2 * WORKERS + 1


@dataclass(frozen=True)
class Running:
    """A loader at work.

    Attributes:
        batches: without end.
        clocks: of the CPU time of each of its workers.
    """

    batches: Iterator[Any]
    clocks: tuple[int, ...]

    def measure(self, count: int) -> Sample:
        """Seconds a sample, over `count` batches; CPU time is this process's and the workers'."""
        for _ in islice(self.batches, _AHEAD):
            pass
        begin_cpu, begin = self._cpu(), time.perf_counter()
        for _ in islice(self.batches, count):
            pass
        wall, cpu = time.perf_counter() - begin, self._cpu() - begin_cpu
        return Sample(wall / (count * BATCH), cpu / (count * BATCH))

    def _cpu(self) -> float:
        return time.process_time() + sum(map(time.clock_gettime, self.clocks))


def measure(ways: dict[str, dict[str, Any]], settings: Settings) -> dict[str, list[Sample]]:
    """Let a loader of each data set deliver, in turns; the others wait meanwhile with full queues.

    Args:
        ways: name -> a data set's block.
        settings: how many samples a round, and how many rounds.

    Returns:
        Name -> seconds a sample, one a round.
    """
    running = {name: start(options) for name, options in ways.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in ways}
    begin = time.perf_counter()
    for number in range(settings.plan.most):
        if number >= settings.plan.rounds and time.perf_counter() - begin > settings.plan.budget:
            break
        for name, loader in running.items():
            samples[name].append(loader.measure(max(1, settings.samples // BATCH)))
    return samples


def start(options: dict[str, Any]) -> Running:
    """Start a loader: BasicSR's for a data set of BasicSR, this plugin's for any other."""
    before = {child.pid for child in multiprocessing.active_children()}
    dataset = build_dataset(options)
    batches: Iterator[Any]
    if type(dataset).__module__.startswith('basicsr.'):
        from basicsr.data import build_dataloader
        from basicsr.data.data_sampler import EnlargedSampler

        common = {'batch_size_per_gpu': BATCH, 'num_worker_per_gpu': WORKERS}
        endless = EnlargedSampler(dataset, 1, 0, ratio=10_000)
        batches = iter(build_dataloader(dataset, {**options, **common}, sampler=endless, seed=0))
    else:
        batches = iter(
            build_train_loader(
                dataset, options, seed=0, rank=0, world_size=1, stages=Stages.constant(BATCH), num_workers=WORKERS
            )
        )
    next(batches)  # workers start with the first batch
    started = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
    return Running(batches, tuple(cpu_clock(pid) for pid in started if pid is not None))


def cpu_clock(pid: int) -> int:
    """The clock of another process's CPU time, for ``time.clock_gettime``.

    Raises:
        OSError: there is no such process.
    """
    clock = ctypes.c_int()
    code = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if code:
        raise OSError(code, f'no clock of process {pid}')
    return clock.value
