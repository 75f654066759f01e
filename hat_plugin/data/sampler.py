"""Which sample comes when: an order over the global sample number, endless, that can start anywhere.

Sample number k is counted over the whole training and over all processes. Its picture and its randomness depend on
(seed, k) alone; not on epochs, workers, processes or on where a run was resumed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from hat_plugin.engine.stages import Stages
from hat_plugin.errors import HatPluginError


def samples_per_epoch(length: int, enlarge: float) -> int:
    """Samples that make an epoch of a data set of `length`, which counts `enlarge` times; at least one."""
    return max(1, math.ceil(length * enlarge))


class SampleOrder:
    """Maps a global sample number to an index into the data set.

    Each epoch is a permutation of its own, drawn from (seed, epoch) by numpy's legacy generator, whose stream numpy
    promises not to change: an upgrade does not change the order of a resumed run.

    Args:
        length: size of the data set.
        seed: of the run, 0 or more.
        shuffle: False walks through the data set in its own order.
        enlarge: how many times the data set counts as one epoch (``dataset_enlarge_ratio``).
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool = True, enlarge: float = 1) -> None:
        if length < 1:
            raise HatPluginError('the data set is empty; there is nothing to train on')
        if seed < 0:
            raise HatPluginError(f'manual_seed: {seed} is negative; choose 0 or more')
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.samples_per_epoch = samples_per_epoch(length, enlarge)
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def __getitem__(self, number: int) -> int:
        """The data set's index of sample `number`."""
        epoch, position = divmod(number, self.samples_per_epoch)
        if not self.shuffle:
            return position % self.length
        if epoch != self._epoch:
            generator = np.random.RandomState([*_words(self.seed), *_words(epoch)])
            self._permutation = generator.permutation(self.samples_per_epoch)
            self._epoch = epoch
        return int(self._permutation[position]) % self.length


@dataclass(frozen=True)
class Draw:
    """A sample that is to be read.

    Attributes:
        number: its global number, on which its randomness depends.
        index: its place in the data set.
        gt_size: side of the patch to cut from its ground truth; None: what the data set's options say.
    """

    number: int
    index: int
    gt_size: int | None = None


class GlobalBatchSampler(Sampler[list[Draw]]):
    """Endless batches for one of `world_size` processes.

    A global batch holds as many consecutive samples as its iteration's stage says; process r takes every world_size-th
    of them, beginning with the r-th. So all processes together see what one process with the whole batch would see.

    Args:
        order: from sample number to index.
        stages: sizes of batches (over all processes) and of patches, by iteration.
        rank: this process.
        world_size: number of processes.
        start: the first global sample number.
        iteration: iterations that are done.
    """

    def __init__(
        self, order: SampleOrder, stages: Stages, *, rank: int, world_size: int, start: int, iteration: int = 0
    ) -> None:
        batches = [stage.batch for stage in stages.stages]
        if min(batches) < 1 or any(batch % world_size for batch in batches) or not 0 <= rank < world_size or start < 0:
            raise ValueError(f'batches of {batches}, rank {rank} of {world_size}, start {start}: impossible')
        self.order = order
        self.stages = stages
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.iteration = iteration

    def __iter__(self) -> Iterator[list[Draw]]:
        base = self.start
        for iteration in itertools.count(self.iteration + 1):
            stage = self.stages.at(iteration)
            numbers = range(base + self.rank, base + stage.batch, self.world_size)
            yield [Draw(number, self.order[number], stage.gt_size) for number in numbers]
            base += stage.batch


def seed_sample(seed: int, number: int) -> None:
    """Seed python's, numpy's and torch's (CPU) global generators from (seed, number)."""
    words = np.random.SeedSequence([seed, number]).generate_state(6, np.uint32)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2:4])
    # Not torch.manual_seed: that would seed the GPU's generator too, which the network's training draws from.
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give python's, numpy's and torch's (CPU) generators back as they were."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _words(value: int) -> tuple[int, int]:
    """A number as two 32-bit words, as the legacy generator takes its seed."""
    return value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
