"""Differences picture by picture, against SciPy's bootstrap and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap

from hat_plugin.compare.measuring import Scores
from hat_plugin.compare.statistics import difference, interval
from hat_plugin.compare.text import spread_figure


def scores(*values: float) -> Scores:
    return Scores({f'{number}': {'psnr': value} for number, value in enumerate(values)})


def test_the_interval_is_scipy_s() -> None:
    each = np.random.default_rng(3).normal(0.1, 0.3, 40)
    low, high = interval(each)
    expected = bootstrap((each,), np.mean, n_resamples=20_000, method='percentile').confidence_interval
    assert low == pytest.approx(expected.low, abs=0.006)
    assert high == pytest.approx(expected.high, abs=0.006)


def test_differences_are_of_the_same_pictures() -> None:
    found = difference(scores(30, 31, 32, 33, 34), scores(29, 31, 33, 32, 32), 'psnr')
    assert (found.mean, found.better, found.worse) == (pytest.approx(0.6), 3, 1)
    assert found.low is not None
    assert found.low < 0.6 < (found.high or 0)
    assert found.low < 0
    same = difference(scores(2, 2, 2, 2, 2), scores(1, 1, 1, 1, 1), 'psnr')
    assert (same.low, same.high) == (1, 1)
    with pytest.raises(ValueError, match='same pictures'):
        difference(scores(1, 2), scores(1), 'psnr')


def test_seeds_are_averaged_picture_by_picture_and_told_one_by_one() -> None:
    one = replace(scores(30, 31, 32, 33, 34), repeats=(scores(31, 31, 33, 33, 34),))
    other = replace(scores(30, 30, 32, 32, 34), repeats=(scores(30, 30, 32, 32, 33),))
    assert one.values('psnr').tolist() == [30.5, 31, 32.5, 33, 34]
    assert one.by_seed('psnr') == pytest.approx([32, 32.4])
    assert spread_figure(one.by_seed('psnr')) == '32.20 ± 0.28'
    assert spread_figure([0.85, 0.8501]) == '0.8500 ± 0.0001'
    assert spread_figure([32.2]) == '32.20'
    found = difference(one, other, 'psnr')
    assert found.mean == pytest.approx(np.mean([0.5, 1, 0.5, 1, 0.5]))
    assert found.by_seed == pytest.approx((0.4, 1.0))
    assert found.seeds == '+0.400, +1.000'
    assert difference(one, scores(30, 30, 32, 32, 34), 'psnr').seeds == '-'


def test_lower_may_be_better() -> None:
    found = difference(scores(1, 2, 3), scores(2, 3, 1), 'psnr', higher_is_better=False)
    assert (found.better, found.worse) == (2, 1)


def test_of_few_pictures_no_interval_is_told() -> None:
    found = difference(scores(1, 2), scores(2, 2), 'psnr')
    assert (found.low, found.high) == (None, None)
    assert found.between == 'fewer than 5 pictures'
