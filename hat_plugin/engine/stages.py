"""Progressive training: patches grow and batches shrink, stage by stage, as Restormer's option files say it.

One plan, shared by all who must agree on it: the sampler (what to draw), the training loop (how far the run is), a
resumed run (where it goes on) and ``basicsr check`` (which stage takes most memory).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

STAGE_KEYS = ('mini_batch_sizes', 'iters', 'gt_sizes')


@dataclass(frozen=True)
class Stage:
    """Iterations with batches and patches of one size.

    Attributes:
        first: its first iteration, counted from 1.
        batch: samples an iteration, over all ranks.
        gt_size: side of a patch of the ground truth in pixels; None: the data set's own.
    """

    first: int
    batch: int
    gt_size: int | None = None


@dataclass(frozen=True)
class Stages:
    """All stages of a run in their order; the last one goes on to its end."""

    stages: tuple[Stage, ...]

    @classmethod
    def constant(cls, batch: int) -> Stages:
        """Batches of one size, patches of the data set's own."""
        return cls((Stage(1, batch),))

    @classmethod
    def of(cls, dataset_opt: Mapping[str, Any], total_batch: int) -> Stages:
        """The plan of a training set's options.

        Args:
            dataset_opt: its checked block; ``mini_batch_sizes``, ``iters`` and ``gt_sizes`` where there are stages.
            total_batch: samples an iteration over all ranks where a device takes ``batch_size_per_gpu``. Other stages
                have as many of their mini-batches as that is of ``batch_size_per_gpu``.
        """
        if not dataset_opt.get('mini_batch_sizes'):
            return cls.constant(total_batch)
        sizes, lengths, sides = (dataset_opt[key] for key in STAGE_KEYS)
        devices = total_batch // dataset_opt['batch_size_per_gpu']
        firsts = accumulate([1, *lengths[:-1]])
        return cls(tuple(Stage(*each) for each in zip(firsts, (devices * size for size in sizes), sides, strict=True)))

    def at(self, iteration: int) -> Stage:
        """The stage of an iteration, counted from 1."""
        return self.stages[bisect_right(self.stages, iteration, key=lambda stage: stage.first) - 1]

    def samples_until(self, iteration: int) -> int:
        """Samples over all ranks that have been seen when an iteration ends."""
        ends = [*(stage.first for stage in self.stages[1:]), iteration + 1]
        return sum(
            stage.batch * max(0, min(end, iteration + 1) - stage.first)
            for stage, end in zip(self.stages, ends, strict=True)
        )


def micro_batch_size(opt: Mapping[str, Any], batch: int, world_size: int) -> int:
    """Samples of one backward pass, where a ``total_batch_size`` is split into several.

    Args:
        opt: the run's options.
        batch: samples that a rank has in this iteration.
        world_size: number of ranks.
    """
    train_set = opt['datasets']['train']
    largest = int(train_set['batch_size_per_gpu'])
    if not train_set.get('mini_batch_sizes'):
        return largest
    return max(1, batch * largest * world_size // int(opt['train']['total_batch_size']))


def largest_stage(dataset_opt: Mapping[str, Any]) -> tuple[int, int | None]:
    """Samples of a device and side of a patch in the stage with most pixels."""
    if not dataset_opt.get('mini_batch_sizes'):
        return int(dataset_opt.get('batch_size_per_gpu') or 1), dataset_opt.get('gt_size')
    pairs = zip(dataset_opt['mini_batch_sizes'], dataset_opt['gt_sizes'], strict=True)
    return max(pairs, key=lambda pair: pair[0] * pair[1] ** 2)
