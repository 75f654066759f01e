"""Work in many processes: results in order, memory bounded, no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from hat_plugin.errors import DataError

Task = TypeVar('Task')
Result = TypeVar('Result')
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def worker_pool(
    workers: int, *, setup: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> Iterator[Mapper]:
    """A function like `map` that works in `workers` processes and yields the results in order.

    At most three tasks a process are under way, so that the results of a fast start do not fill the memory. With one
    worker all happens in this process.

    Args:
        workers: processes.
        setup: called once in each process before its first task (where there are several), with `given`: what is large
            is sent once, and not with every task.
        given: arguments of `setup`.

    Raises:
        DataError: a process died (usually the system was out of memory).
    """
    if workers <= 1:
        yield map
        return
    # Not a plain fork: OpenCV's and torch's threads in this process would be cut off in the middle of what they do. The
    # fork server is a fresh process that has imported the plugin once, and forks from there.
    posix = os.name == 'posix'
    context = multiprocessing.get_context('forkserver' if posix else 'spawn')
    if posix:
        context.set_forkserver_preload(['hat_plugin'])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(setup, given)) as pool:
        try:
            yield lambda function, tasks: _ordered(pool, function, tasks, 3 * workers)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ordered(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterable[Task], limit: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            'a worker process died, usually because the memory ran out; run the same again with fewer --workers'
        ) from error


def _begin_worker(setup: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    """Ctrl-C is the parent's business; and when the parent is killed, nobody else would end this process."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if setup is not None:
        setup(*given)


def end_with_parent() -> None:
    """Let this process end as soon as the one that began it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_await_end, args=(parent,), daemon=True).start()


def _await_end(parent: BaseProcess) -> None:
    parent.join()  # a pipe that closes
    os._exit(1)
