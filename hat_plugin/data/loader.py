"""Loaders for training and validation: the same samples whatever the workers, and errors that can be read.

They stand in the place of BasicSR's ``build_dataloader``, whose workers repeat one augmentation stream every epoch and
which cannot start in the middle.
"""

from __future__ import annotations

import atexit
import logging
import signal
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import cv2
import torch
from torch.utils.data import DataLoader

from hat_plugin.data.options import loader_options
from hat_plugin.data.sampler import Draw, GlobalBatchSampler, SampleOrder
from hat_plugin.data.seeded import Batch, Failure, SeededDataset, collate
from hat_plugin.engine.options import LoaderOptions
from hat_plugin.engine.signals import SIGNALS
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import DataError

logger = logging.getLogger(__name__)
Samples: TypeAlias = dict[str, Any]


class PictureLoader(DataLoader[Samples]):
    """A DataLoader that yields dicts of tensors, logs what was skipped, and raises DataError in the caller.

    Attributes:
        skipped: every message of a skipped sample, with how often it was skipped.
        samples_per_epoch: samples that make an epoch (training), or that this process validates on.
    """

    def __init__(
        self, dataset: SeededDataset, *, samples_per_epoch: int, to_cuda: bool = False, **arguments: Any
    ) -> None:
        # A generator of its own: torch would draw each iterator's base seed from the global one, which is training's.
        super().__init__(
            dataset,  # type: ignore[arg-type]
            collate_fn=collate,
            generator=torch.Generator(),
            **arguments,
        )
        self.skipped: dict[str, int] = {}
        self.samples_per_epoch = samples_per_epoch
        self._to_cuda = to_cuda

    def __iter__(self) -> Iterator[Samples]:  # type: ignore[override]
        samples = self._samples()
        return _ahead_on_cuda(samples) if self._to_cuda else samples

    def _samples(self) -> Iterator[Samples]:
        iterator = super().__iter__()
        _workers.update(getattr(iterator, '_workers', ()))
        batches = _reported(iterator)
        for batch in batches:
            if isinstance(batch, Failure):
                raise DataError(batch.message)
            assert isinstance(batch, Batch)
            for message in batch.skipped:
                self._count(message)
            if batch.data is not None:
                yield batch.data

    def _count(self, message: str) -> None:
        """Log a skipped sample the first time, and count it."""
        if message not in self.skipped:
            logger.warning('skipped (%d so far): %s', len(self.skipped) + 1, message)
        self.skipped[message] = self.skipped.get(message, 0) + 1


class _ListSampler:
    """A fixed list of samples, each numbered by its place."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(index, index) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def build_train_loader(
    dataset: Any,
    dataset_opt: Mapping[str, Any],
    *,
    seed: int,
    rank: int,
    world_size: int,
    stages: Stages,
    start_sample: int = 0,
    start_iteration: int = 0,
    num_workers: int,
) -> PictureLoader:
    """An endless loader that begins at global sample number `start_sample`.

    Sample number k is the same, bit for bit, for any number of workers, any split over processes and any start. Of
    `dataset_opt` it reads the keys of LoaderOptions; other keys belong to the data set.

    Args:
        dataset: any map-style data set that yields dicts, BasicSR's included.
        dataset_opt: its block of the option file.
        seed: of the run, 0 or more; the same on all processes.
        rank: of this process.
        world_size: number of processes.
        stages: samples an iteration over all processes, and sides of patches where they change on the way.
        start_sample: samples that all processes together have trained on before.
        start_iteration: iterations in which they did.
        num_workers: processes that read pictures; 0 reads in this one, without touching its random generators.

    Raises:
        HatPluginError: the data set is empty, or the seed negative.
    """
    options = loader_options(dataset_opt)
    order = SampleOrder(len(dataset), seed=seed, shuffle=options.use_shuffle, enlarge=options.dataset_enlarge_ratio)
    batches = GlobalBatchSampler(
        order, stages, rank=rank, world_size=world_size, start=start_sample, iteration=start_iteration
    )
    return PictureLoader(
        SeededDataset(dataset, seed=seed, **sample_skips(dataset_opt)),
        samples_per_epoch=order.samples_per_epoch,
        batch_sampler=batches,
        to_cuda=options.prefetch_mode == 'cuda' and torch.cuda.is_available(),
        **_worker_arguments(options, num_workers),
    )


def build_val_loader(
    dataset: Any, dataset_opt: Mapping[str, Any], *, rank: int = 0, world_size: int = 1
) -> PictureLoader:
    """A loader over every world_size-th picture from the rank-th on, one by one, in the data set's order.

    Each batch holds ``index``, the position in the data set, beside the data set's own entries. A data set that draws
    random numbers (added noise) draws the same ones each time, and the process's generators stay untouched.
    ``num_worker_per_gpu`` counts here too, where it is given; otherwise this process reads.
    """
    options = loader_options(dataset_opt)
    if len(dataset) < 1:
        raise DataError(f'data set {options.name}: is empty; there is nothing to validate on')
    indices = range(rank, len(dataset), world_size)
    return PictureLoader(
        SeededDataset(dataset, seed=0, replace=False, add_index=True, **sample_skips(dataset_opt)),
        samples_per_epoch=len(indices),
        sampler=_ListSampler(indices),
        batch_size=1,
        **_worker_arguments(options, options.num_worker_per_gpu or 0),
    )


def sample_skips(dataset_opt: Mapping[str, Any]) -> dict[str, bool]:
    """Which samples are no reason to stop: arguments of `SeededDataset`."""
    corrupt = loader_options(dataset_opt).on_corrupt == 'skip'
    return {'skip_corrupt': corrupt, 'skip_small': dataset_opt.get('small_images') == 'skip'}


def _worker_arguments(options: LoaderOptions, num_workers: int) -> dict[str, Any]:
    """Arguments of torch's DataLoader that have to do with workers and memory."""
    if options.prefetch_mode == 'cpu':
        num_workers = max(1, num_workers)
    arguments: dict[str, Any] = {
        'num_workers': num_workers,
        'pin_memory': (options.pin_memory or options.prefetch_mode == 'cuda') and torch.cuda.is_available(),
    }
    if num_workers:
        arguments |= {
            'persistent_workers': options.persistent_workers,
            'prefetch_factor': options.num_prefetch_queue if options.prefetch_mode == 'cpu' else 2,
            'multiprocessing_context': options.multiprocessing_context,
            'worker_init_fn': _init_worker,
        }
    return arguments


# Processes of this one's loaders. Whoever dies of an exception (memory that ran out, say) holds its loader in the
# traceback; multiprocessing would end the processes by SIGTERM, which they ignore, and wait for them for ever.
_workers: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    alive = [worker for worker in list(_workers) if worker.is_alive()]
    if alive and hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call their end an error
    for worker in alive:
        worker.kill()


def _init_worker(worker: int) -> None:
    """One thread a worker; signals to the process group are left to the main process, which saves, then ends them."""
    cv2.setNumThreads(0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _reported(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; a worker that died is told with its likely causes."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if 'DataLoader worker' not in str(error):
                raise
            raise DataError(
                f'a process that reads pictures died: {error} Likely causes: memory ran out (lower '
                'num_worker_per_gpu), /dev/shm is full (a container needs --shm-size), or a damaged LMDB (basicsr '
                'check reads it all). num_worker_per_gpu: 0 shows the error itself.'
            ) from error
        yield batch


def _ahead_on_cuda(samples: Iterator[Samples]) -> Iterator[Samples]:
    """Copy each batch to the GPU, on a stream of its own, while the one before is trained on."""
    stream = torch.cuda.Stream()
    coming: Samples | None = None
    for batch in samples:
        current = coming
        with torch.cuda.stream(stream):
            coming = {
                key: value.to('cuda', non_blocking=True) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
        if current is not None:
            yield current
        torch.cuda.current_stream().wait_stream(stream)
        for value in coming.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(torch.cuda.current_stream())
    if coming is not None:
        yield coming
