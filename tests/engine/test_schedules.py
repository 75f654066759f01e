"""Schedules of published option files against closed forms written another way, and against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hat_plugin.engine.optimizers import LearningRate
from hat_plugin.errors import HatPluginError

RESTORMER = {
    'type': 'CosineAnnealingRestartCyclicLR',
    'periods': [92, 208],
    'restart_weights': [1, 1],
    'eta_mins': [3e-4, 1e-6],
}


def rates(options: dict, iterations: int, lr: float = 3e-4) -> np.ndarray:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=lr)
    schedule = LearningRate(optimizer, options)
    found = []
    for iteration in range(1, iterations + 1):
        schedule.set(iteration)
        found.append(optimizer.param_groups[0]['lr'])
    return np.array(found)


def half_cosine(steps: np.ndarray, length: float, high: float, low: float) -> np.ndarray:
    """cos² of half the angle, which is (1 + cos) / 2."""
    return low + (high - low) * np.cos(np.pi * steps / (2 * length)) ** 2


def test_restormers_two_cycles_are_a_constant_and_half_a_cosine() -> None:
    found = rates(RESTORMER, 300)
    assert found[:93] == pytest.approx(3e-4, rel=1e-12)  # iterations 1 to 93: 0 to 92 steps
    assert found[92:] == pytest.approx(half_cosine(np.arange(208), 208, 3e-4, 1e-6), rel=1e-10)


def test_each_period_has_its_own_peak_and_minimum() -> None:
    found = rates({**RESTORMER, 'periods': [10, 20], 'restart_weights': [1, 0.5], 'eta_mins': [1e-5, 1e-6]}, 31, 1e-3)
    assert found[:11] == pytest.approx(half_cosine(np.arange(11), 10, 1e-3, 1e-5), rel=1e-10)
    peak = 1e-6 + 0.5 * (1e-3 - 1e-6)
    assert found[11:] == pytest.approx(half_cosine(np.arange(1, 21), 20, peak, 1e-6), rel=1e-10)
    assert found[10] == pytest.approx(1e-5)
    assert found[30] == pytest.approx(1e-6)


def test_after_the_last_period_the_rate_stays() -> None:
    found = rates({**RESTORMER, 'periods': [4, 4]}, 12)
    assert found[8:] == pytest.approx(1e-6)


def test_a_jump_equals_a_walk() -> None:
    walked = rates(RESTORMER, 300)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=3e-4)
    schedule = LearningRate(optimizer, RESTORMER)
    for iteration in (150, 93, 94, 300):
        schedule.set(iteration)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(walked[iteration - 1], rel=1e-12)


def test_nafnets_true_cosine_is_torchs() -> None:
    found = rates({'type': 'TrueCosineAnnealingLR', 'T_max': 200, 'eta_min': 1e-7}, 200, 1e-3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200, 1e-7)
    expected = []
    for _ in range(200):
        expected.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        reference.step()
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(half_cosine(np.arange(200), 200, 1e-3, 1e-7), rel=1e-9)


@pytest.mark.parametrize(
    'change', [{'eta_mins': [1e-6]}, {'restart_weights': [1]}, {'periods': []}, {'periods': [0, 5]}]
)
def test_lists_that_do_not_go_together_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match='periods'):
        rates({**RESTORMER, **change}, 1)


def test_an_unknown_name_lists_the_new_ones() -> None:
    with pytest.raises(HatPluginError, match='CosineAnnealingRestartCyclicLR.*TrueCosineAnnealingLR'):
        rates({'type': 'CosineAnealing'}, 1)
