"""Time taken: calls that take turns, two clocks, medians with quartiles."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Seconds that one call took: by the clock on the wall (on CUDA by the device's own), and of processor time."""

    wall: float
    cpu: float

    def seconds(self, clock: str) -> float:
        """By 'wall' or 'cpu'."""
        return self.wall if clock == 'wall' else self.cpu


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of several measurements."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f'{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]'


@dataclass(frozen=True)
class Plan:
    """How often to measure.

    Attributes:
        rounds: at least so many rounds in which each call has its turn.
        most: no more than these, however fast they are.
        budget: further rounds are begun until so many seconds are spent.
        sample: a fast call is repeated within its turn for about so many seconds.
    """

    rounds: int = 5
    most: int = 25
    budget: float = 60.0
    sample: float = 0.1


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of one value that value, of none a ValueError."""
    if not values:
        raise ValueError('nothing was measured: at least one value is needed')
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return Spread(median, low, high)


def ratios(base: Sequence[Sample], others: Sequence[Sample], clock: str) -> Spread:
    """How many times as fast `others` are as `base`: the ratio within each round, so that a load which comes and goes
    during the measurement meets both."""
    pairs = zip(base, others, strict=True)
    return spread([one.seconds(clock) / max(other.seconds(clock), 1e-9) for one, other in pairs])


def measure(call: Call, device: torch.device, repeats: int = 1) -> Sample:
    """Time `repeats` calls.

    Args:
        call: the work; what it returns is dropped.
        device: where it computes. On CUDA the wall time lies between two events of the current stream.
        repeats: calls in the sample.

    Returns:
        Seconds a call.
    """
    if device.type == 'cuda':
        return _measure_cuda(call, device, repeats)
    begin_cpu, begin = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    return Sample(wall / repeats, cpu / repeats)


def _measure_cuda(call: Call, device: torch.device, repeats: int) -> Sample:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin_cpu = time.process_time()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        cpu = time.process_time() - begin_cpu
        return Sample(begin.elapsed_time(end) / 1000 / repeats, cpu / repeats)


def alternate(calls: Mapping[str, Call], device: torch.device, plan: Plan) -> dict[str, list[Sample]]:
    """Measure calls in turns, after a round that warms up and tells how often a fast call is repeated.

    Every other round goes backwards, so that a steady drift of the machine's speed favours none.

    Returns:
        Name -> samples, as many for each name: index i is round i.
    """
    repeats = {}
    for name, call in calls.items():
        once = measure(call, device).wall  # the first call compiles, allocates and fills caches
        if once < 10 * plan.sample:
            once = measure(call, device).wall
        repeats[name] = max(1, min(1000, math.ceil(plan.sample / max(once, 1e-6))))
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    names = list(calls)
    begin = time.perf_counter()
    for number in range(max(plan.rounds, plan.most)):
        if number >= plan.rounds and time.perf_counter() - begin > plan.budget:
            break
        gc.collect()
        for name in names if number % 2 == 0 else reversed(names):
            samples[name].append(measure(calls[name], device, repeats[name]))
    return samples


def cuda_peak(call: Call, device: torch.device) -> int:
    """How far memory rises above what is allocated between calls, in bytes of torch's allocator."""
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
