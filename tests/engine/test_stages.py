"""Stages of progressive training: arithmetic by hand, and what is said of lists that do not go together."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from option_examples import options, problems

from hat_plugin.engine.options import notes
from hat_plugin.engine.stages import Stage, Stages, largest_stage, micro_batch_size

RESTORMER = {
    'batch_size_per_gpu': 8,
    'gt_size': 384,
    'mini_batch_sizes': [8, 5, 4, 2, 1, 1],
    'iters': [92000, 64000, 48000, 36000, 36000, 24000],
    'gt_sizes': [128, 160, 192, 256, 320, 384],
}
SMALL = {
    'datasets__train__mini_batch_sizes': [4, 2],
    'datasets__train__iters': [60, 40],
    'datasets__train__gt_sizes': [32, 64],
    'datasets__train__batch_size_per_gpu': 4,
}


@pytest.mark.parametrize(
    ('iteration', 'batch', 'side'),
    [
        (1, 64, 128),
        (92000, 64, 128),
        (92001, 40, 160),
        (156000, 40, 160),
        (156001, 32, 192),
        (204001, 16, 256),
        (240001, 8, 320),
        (276000, 8, 320),
        (276001, 8, 384),
        (300000, 8, 384),
        (1000000, 8, 384),  # the last stage goes on
    ],
)
def test_restormers_stages_on_eight_devices(iteration: int, batch: int, side: int) -> None:
    stage = Stages.of(RESTORMER, 64).at(iteration)
    assert (stage.batch, stage.gt_size) == (batch, side)


def test_samples_by_hand() -> None:
    stages = Stages.of({**RESTORMER, 'iters': [3, 2, 1, 1, 1, 1]}, 8)
    assert [stages.samples_until(iteration) for iteration in range(9)] == [0, 8, 16, 24, 29, 34, 38, 40, 41]
    assert stages.samples_until(12) == 45  # the last stage goes on: 42 after nine, then one each
    assert Stages.of(RESTORMER, 64).samples_until(300000) == 8 * (
        8 * 92000 + 5 * 64000 + 4 * 48000 + 2 * 36000 + 36000 + 24000
    )


def test_without_lists_there_is_one_stage() -> None:
    stages = Stages.of({'batch_size_per_gpu': 4, 'gt_size': 64}, 32)
    assert stages == Stages.constant(32) == Stages((Stage(1, 32),))
    assert stages.samples_until(10) == 320
    assert stages.at(7).gt_size is None


def test_a_total_batch_is_split_into_mini_batches_of_the_stage() -> None:
    opt = {'datasets': {'train': RESTORMER}, 'train': {'total_batch_size': 64}}
    stages = Stages.of(RESTORMER, 64)
    for world_size in (1, 2, 8):
        found = [micro_batch_size(opt, stage.batch // world_size, world_size) for stage in stages.stages]
        assert found == RESTORMER['mini_batch_sizes']
    plain = {'datasets': {'train': {'batch_size_per_gpu': 8}}, 'train': {'total_batch_size': 20}}
    assert micro_batch_size(plain, 20, 1) == 8  # parts of 8, 8 and 4, as ever


def test_the_stage_with_most_pixels() -> None:
    assert largest_stage(RESTORMER) == (4, 192)  # 147,456 pixels, as the last, which comes after it
    assert largest_stage({**RESTORMER, 'gt_sizes': [128, 160, 192, 256, 320, 400]}) == (1, 400)
    assert largest_stage({'batch_size_per_gpu': 4, 'gt_size': 64}) == (4, 64)


def test_right_lists_pass() -> None:
    assert problems(options(**SMALL)) == []
    assert problems(options(**SMALL, train__total_batch_size=8)) == []


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'datasets__train__iters': ...}, 'datasets: train: iters: missing beside mini_batch_sizes, gt_sizes'),
        ({'datasets__train__iters': [60]}, 'a number a stage; they have: mini_batch_sizes 2, iters 1, gt_sizes 2'),
        ({'datasets__train__gt_sizes': [33, 64]}, 'gt_sizes: [33]: no multiples of scale 2'),
        ({'datasets__train__gt_sizes': [32, 48]}, 'gt_size: 64 is not the largest of gt_sizes; write 48'),
        ({'datasets__train__mini_batch_sizes': [3, 2]}, 'batch_size_per_gpu: 4 is not the largest of mini_batch_sizes'),
        ({'datasets__train__mini_batch_sizes': [4, 0]}, 'mini_batch_sizes: 1'),
        ({'datasets__train__iters': []}, 'datasets: train: iters'),
        ({'train__total_batch_size': 6}, 'total_batch_size: 6 is no multiple of 4'),
    ],
)
def test_lists_that_do_not_go_together_are_refused(changes: dict[str, Any], line: str) -> None:
    changed = {**SMALL, **{key: value for key, value in changes.items() if value is not ...}}
    found = problems(options(**{key: value for key, value in changed.items() if changes.get(key) is not ...}))
    assert len(found) == 1, found
    assert line in found[0]


def test_two_ranks_need_a_total_that_each_can_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert problems(options(**SMALL, train__total_batch_size=8)) == []
    [line] = problems(options(**SMALL, train__total_batch_size=12))
    assert 'total_batch_size: 12 is no multiple of 8' in line


def test_stages_that_never_begin_are_told_of() -> None:
    opt = options(**SMALL, train__total_iter=60)
    assert 'datasets: train: iters: the last 1 of 2 stages begin after 60' in notes(opt, is_train=True)
    assert not any('iters' in line for line in notes(options(**SMALL, train__total_iter=61), is_train=True))


def test_stages_are_for_training() -> None:
    opt = options(**SMALL)
    opt['datasets']['val_1']['gt_sizes'] = [32, 64]
    assert 'datasets: val_1: gt_sizes: has no effect here: it is for training' in notes(opt, is_train=True)


def test_check_estimates_the_stage_that_needs_most(tmp_path: Any, cli: Any) -> None:
    file = tmp_path / 'stages.yml'
    opt = options(**{**SMALL, 'datasets__train__mini_batch_sizes': [4, 1]})
    file.write_text(yaml.safe_dump(opt))
    assert 'a training step of 4 x 16x16' in cli('check', '--no-data', '-opt', file).out  # 4 * 32² = 64²: the first
    opt['datasets']['train'].update(mini_batch_sizes=[4, 2])
    file.write_text(yaml.safe_dump(opt))
    assert 'a training step of 2 x 32x32' in cli('check', '--no-data', '-opt', file).out
