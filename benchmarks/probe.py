"""One contender in a process of its own: its peak of memory above the weights, and the time of a call."""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext

import torch

from benchmarks.networks import OURS, PRECISIONS, Contender, build, forward_of, image_of
from benchmarks.settings import Settings
from benchmarks.training import Step
from hat_plugin.compare.peak import keep_freed_blocks, peak_bytes
from hat_plugin.compare.timing import Call, Sample, measure
from hat_plugin.engine.memory import (
    available_bytes,
    estimate_forward_bytes,
    estimate_training_bytes,
    is_out_of_memory,
)
from hat_plugin.engine.workers import end_with_parent
from hat_plugin.layers.precision import prepare_for_inference

USABLE = 0.85  # of the free memory: what else runs on the machine shall not be pushed out


@dataclass(frozen=True)
class Task:
    """What a process measures.

    Attributes:
        network, contender: what runs.
        side, batch: of the LR image.
        trains: a training step in place of inference.
        threads: torch's.
        device: 'cpu' or a CUDA device.
        seconds: time calls for about so long, two at least, of which the first is not counted; 0: memory alone.
    """

    network: str
    contender: Contender
    side: int
    batch: int = 1
    trains: bool = False
    threads: int = 1
    device: str = 'cpu'
    seconds: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What the process found.

    Attributes:
        bytes: peak above the weights. In training: with gradients and the optimiser's state.
        estimate: what `hat_plugin.engine.memory` expects; None for others' code.
        sample: the fastest call; None where none was timed.
    """

    bytes: int
    estimate: int | None
    sample: Sample | None

    def seconds(self, clock: str) -> float:
        """Of the fastest call; not a number where none was timed."""
        return self.sample.seconds(clock) if self.sample else math.nan


def on(task: Task, settings: Settings) -> Task:
    """The task with the device and threads of the run."""
    return replace(task, threads=settings.threads, device=str(settings.device))


def run(task: Task) -> Finding | None:
    """Measure in a new process.

    Returns:
        None where the memory does not suffice.

    Raises:
        RuntimeError: the process failed for another reason; the message has it.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_serve, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = None
    process.join()
    if process.exitcode == -9:  # the kernel's way to say that memory is out
        return None
    if isinstance(answer, str) or process.exitcode:
        raise RuntimeError(f'{task.contender} at {task.side}x{task.side}: {answer or f"exit {process.exitcode}"}')
    return answer


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform != 'linux':
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    # All that a child imports, its parent's main module included, is imported once, and forked before threads start.
    context.set_forkserver_preload(['benchmarks.__main__'])
    return context


def _serve(task: Task, connection: Connection) -> None:
    end_with_parent()  # a killed benchmark would leave its last, longest measurement to run on
    answer: Finding | str | None
    try:
        answer = perform(task)
    except Exception as error:
        answer = None if is_out_of_memory(error) else f'{type(error).__name__}: {error}'
    connection.send(answer)


def perform(task: Task) -> Finding:
    """The measurement itself, in this process."""
    device = torch.device(task.device)
    torch.set_num_threads(task.threads)
    if device.type == 'cpu':
        _limit_memory(int(available_bytes() * USABLE))
    make = _training if task.trains else _inference
    call = make(task, task.side, task.batch)
    make(replace(task, network='tiny'), min(task.side, 16), 1)()  # libraries load, thread pools start, no hole is left

    def calls() -> None:
        call()
        if task.trains:  # Adam's state is there from the second step on
            call()

    peak = peak_bytes(calls, device)
    return Finding(peak, _estimate(task), _fastest(call, device, task.seconds) if task.seconds else None)


def _fastest(call: Call, device: torch.device, seconds: float) -> Sample:
    keep_freed_blocks(True)
    call()
    samples: list[Sample] = []
    begin = time.perf_counter()
    while not samples or time.perf_counter() - begin < seconds:
        samples.append(measure(call, device))
    return min(samples, key=lambda sample: sample.cpu + sample.wall)


def _inference(task: Task, side: int, batch: int) -> Call:
    device = torch.device(task.device)
    forward = forward_of(build(task.network, task.contender), task.contender, device)
    image = image_of(side, device, batch)
    return lambda: forward(image)


def _training(task: Task, side: int, batch: int) -> Call:
    return Step(task.network, task.contender, torch.device(task.device), side, batch)


def _estimate(task: Task) -> int | None:
    """The memory model's word on it; None where it has none."""
    if task.contender.code != OURS:
        return None
    net = build(task.network, task.contender)
    precision = PRECISIONS[task.contender.precision]
    if precision is not None and not task.trains:
        net = prepare_for_inference(net, precision)
    amp = 'bf16' if task.contender.precision == 'bf16 autocast' else None
    shape = (task.batch, 3, task.side, task.side)
    net = net.to(torch.device(task.device))
    try:
        if task.trains:
            weights = sum(tensor.nbytes for tensor in [*net.parameters(), *net.buffers()])
            return estimate_training_bytes(net.train(), shape, amp, ema=False) - weights
        with torch.autocast(torch.device(task.device).type, torch.bfloat16, enabled=amp is not None):
            return estimate_forward_bytes(net, shape)
    except (RuntimeError, NotImplementedError):  # a kernel that cannot be walked through without values
        return None


def _limit_memory(limit: int) -> None:
    """Let allocations beyond the limit fail here, before the system looks for somebody to kill."""
    if sys.platform == 'linux':
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
