"""How far apart two networks are on a test set, picture by picture, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hat_plugin.compare.measuring import Scores
from hat_plugin.compare.text import signed

CONFIDENCE, RESAMPLES = 0.95, 10_000
FEWEST = 5  # pictures, below which an interval says nothing


@dataclass(frozen=True)
class Difference:
    """Of one network to another in one metric, over the pictures of a test set.

    Attributes:
        mean: of the differences, in the metric's unit.
        low, high: of the interval that holds the mean with 95 % confidence, by resampling pictures; None: too few.
        better, worse: pictures on which the network is ahead, and behind.
        by_seed: the mean for each seed, where there are several.
    """

    mean: float
    low: float | None
    high: float | None
    better: int
    worse: int
    by_seed: tuple[float, ...] = ()

    @property
    def seeds(self) -> str:
        """The means by seed in words."""
        return ', '.join(map(signed, self.by_seed)) or '-'

    @property
    def between(self) -> str:
        """The interval in words."""
        if self.low is None or self.high is None:
            return f'fewer than {FEWEST} pictures'
        return f'{signed(self.low)} to {signed(self.high)}'


def difference(scores: Scores, reference: Scores, metric: str, *, higher_is_better: bool = True) -> Difference:
    """`scores` minus `reference`, of the same pictures.

    The interval is the bootstrap's by percentiles, with a fixed seed: the pictures are the sample, so that it tells how
    far the mean depends on which pictures the set happens to hold. What another training would give the seeds tell.

    Raises:
        ValueError: the pictures differ.
    """
    names = [name for name, row in scores.pictures.items() if metric in row]
    if names != [name for name, row in reference.pictures.items() if metric in row]:
        raise ValueError(f'{metric}: not of the same pictures')
    each = scores.values(metric) - reference.values(metric)
    ahead = each > 0 if higher_is_better else each < 0
    low, high = interval(each)
    better = int(ahead.sum())
    both = scores.repeats and reference.repeats
    pairs = zip(scores.by_seed(metric), reference.by_seed(metric), strict=True) if both else ()
    by_seed = tuple(one - other for one, other in pairs)
    return Difference(float(each.mean()), low, high, better, int((each != 0).sum()) - better, by_seed)


def interval(each: np.ndarray) -> tuple[float | None, float | None]:
    """Bounds of the mean of (N,) values; None where they are fewer than `FEWEST`."""
    if each.size < FEWEST or not np.isfinite(each).all():
        return None, None
    means = np.random.default_rng(0).choice(each, (RESAMPLES, each.size)).mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
