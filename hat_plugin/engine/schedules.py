"""Learning-rate schedules under the names of published option files: what neither torch nor BasicSR has."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CosineAnnealingRestartCyclicLR(LRScheduler):
    """Cosine periods, each from its own peak to its own minimum; Restormer's schedule.

    In period p, of length T and minimum e, t iterations after its start, a group of nominal rate r has
    e + restart_weights[p] * (r - e) * (1 + cos(pi * t / T)) / 2. The iteration that ends a period belongs to it. After
    the last period the rate stays at its minimum.

    Args:
        optimizer: its groups' ``lr`` are the nominal rates.
        periods: iterations of each period.
        restart_weights: factor of each period's peak above its minimum.
        eta_mins: minimum of each period; one equal to the nominal rate makes the period constant.

    Raises:
        ValueError: the lists are empty, or not of one length; a period is no positive number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1,),
        eta_mins: Sequence[float] = (0,),
    ) -> None:
        if not periods or not len(periods) == len(restart_weights) == len(eta_mins):
            lengths = f'{len(periods)}, {len(restart_weights)} and {len(eta_mins)}'
            raise ValueError(
                f'periods, restart_weights and eta_mins have {lengths} numbers; write one a period in each'
            )
        if min(periods) <= 0:
            raise ValueError(f'periods: {list(periods)}: each must have at least one iteration')
        self.periods, self.restart_weights, self.eta_mins = periods, restart_weights, eta_mins
        self._ends = list(accumulate(periods))
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rates of iteration ``last_epoch``, counted from 0."""
        period = min(bisect_left(self._ends, self.last_epoch), len(self._ends) - 1)
        length, lowest = self.periods[period], self.eta_mins[period]
        passed = min(self.last_epoch - (self._ends[period] - length), length)
        share = self.restart_weights[period] * (1 + math.cos(math.pi * passed / length)) / 2
        return [lowest + share * (float(rate) - lowest) for rate in self.base_lrs]
