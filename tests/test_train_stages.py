"""Training by stages as users see it: killed and resumed over a boundary, on two ranks, in micro-batches."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import training

from hat_plugin.cli import main
from hat_plugin.models.restoration_model import RestorationModel

STAGES: dict[str, Any] = {
    'datasets__train__batch_size_per_gpu': 4,
    'datasets__train__gt_size': 24,
    'datasets__train__mini_batch_sizes': [4, 2, 1],
    'datasets__train__iters': [5, 6, 4],
    'datasets__train__gt_sizes': [8, 16, 24],
    'train__scheduler__milestones': [20],
}


@pytest.fixture
def here(tmp_path, photos, monkeypatch) -> Path:
    training.write_photos(tmp_path, {name: photos[name] for name in photos})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(here: Path, *arguments: str, **changes: Any) -> Path:
    name = changes.pop('name', 'tiny')
    options = training.write_options(here / f'{name}.yml', name=name, **{**STAGES, **changes})
    assert main(['train', '-opt', str(options), *arguments]) == 0
    return here / 'experiments' / name


def state(run: Path, iteration: int) -> dict[str, Any]:
    return torch.load(run / 'training_states' / f'{iteration}.state', weights_only=True)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the LQ batches that networks were trained on."""
    shapes: list[tuple[int, ...]] = []
    take = RestorationModel.feed_data

    def noted(self: RestorationModel, data: dict[str, Any]) -> None:
        if self.net_g.training and len(data['lq']) == len(data['gt']) and 'index' not in data:
            shapes.append(tuple(data['lq'].shape))
        take(self, data)

    monkeypatch.setattr(RestorationModel, 'feed_data', noted)
    return shapes


def test_batches_shrink_patches_grow_and_the_last_stage_goes_on(here, seen):
    run = train(here, train__total_iter=18)
    assert seen == [(4, 3, 4, 4)] * 5 + [(2, 3, 8, 8)] * 6 + [(1, 3, 12, 12)] * 7
    assert state(run, 16)['progress']['samples'] == 5 * 4 + 6 * 2 + 5
    log = next(run.glob('train_*.log')).read_text()
    assert 'From iteration 6: patches of 16, batches of 2.' in log


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('stop', [4, 8])
def test_a_run_that_goes_on_over_a_boundary_equals_an_uninterrupted_one(here, stop, workers):
    expected = training.networks(train(here, name='undisturbed', train__total_iter=16))
    train(here, train__total_iter=stop, datasets__train__num_worker_per_gpu=workers)
    run = train(here, '--auto_resume', train__total_iter=16, datasets__train__num_worker_per_gpu=workers)
    assert training.same(training.networks(run), expected)
    assert state(run, 16)['progress'] == state(here / 'experiments/undisturbed', 16)['progress']


def test_kill_9_then_auto_resume_over_two_boundaries_ends_in_identical_weights(here):
    changes = {
        **STAGES,
        'datasets__train__iters': [12, 20, 4],
        'train__total_iter': 48,
        'logger__save_checkpoint_freq': 5,
        'datasets__train__num_worker_per_gpu': 2,
    }
    expected = training.networks(train(here, name='undisturbed', **changes))
    options = training.write_options(here / 'killed.yml', **changes)
    run = here / 'experiments' / 'tiny'
    process = training.start(['-m', 'hat_plugin.train', '-opt', str(options)], here)
    begin = time.time()
    while not (run / 'training_states' / '10.state').exists() and process.poll() is None and time.time() - begin < 60:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    training.finish(process)
    assert (run / 'training_states' / '10.state').exists()
    assert not (run / 'models' / 'net_g_latest.pth').exists(), 'it ended before it was killed'
    assert main(['train', '-opt', str(options), '--auto_resume']) == 0
    assert training.same(training.networks(run), expected)


def test_a_total_batch_is_accumulated_in_mini_batches_of_the_stage(here, monkeypatch):
    """One device with total_batch_size 8 trains as two devices of the published file do."""
    calls: list[int] = []
    parts = RestorationModel.micro_batches

    def noted(self: RestorationModel) -> list[Any]:
        found = parts(self)
        calls.extend(len(lq) for lq, _ in found)
        return found

    monkeypatch.setattr(RestorationModel, 'micro_batches', noted)
    run = train(here, train__total_batch_size=8, train__total_iter=12, train__warmup_iter=-1)
    assert calls == [4, 4] * 5 + [2, 2] * 6 + [1, 1]
    assert state(run, 12)['progress']['samples'] == 8 * 5 + 4 * 6 + 2


def test_two_ranks_train_as_one(here):
    changes = {'network_g__drop_path_rate': 0.0, 'train__total_batch_size': 8, 'train__total_iter': 12}
    one = train(here, name='one', **changes)
    options = training.write_options(here / 'two.yml', name='two', **{**STAGES, **changes})
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--rdzv-backend=c10d']
    launcher += ['--rdzv-endpoint=localhost:0', '-m', 'hat_plugin.train', '--launcher', 'pytorch']
    code, output = training.finish(training.start([*launcher, '-opt', str(options)], here))
    assert code == 0, output
    two = here / 'experiments/two'
    assert state(two, 12)['progress']['samples'] == state(one, 12)['progress']['samples']
    found, expected = training.networks(two), training.networks(one)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_state_of_basicsr_goes_on_at_its_iterations_sample(here):
    run = train(here, train__total_iter=8)
    states = run / 'training_states'
    content = {
        key: value for key, value in state(run, 8).items() if key in ('epoch', 'iter', 'optimizers', 'schedulers')
    }
    torch.save(content, states / '8.state')
    (run / 'models/net_g_latest.pth').unlink()
    run = train(here, '--auto_resume', train__total_iter=12)
    assert state(run, 12)['progress']['samples'] == 5 * 4 + 6 * 2 + 1


def test_models_that_cut_patches_themselves_refuse_stages(here, capsys):
    options = training.write_options(
        here / 'real.yml', **STAGES, model_type='RealHATMSEModel', gt_size=16, high_order_degradation=False,
        gt_usm=False,
    )  # fmt: skip
    assert main(['check', '--no-data', '-opt', str(options)]) == 2
    assert 'RealHATMSEModel cuts patches of its own gt_size' in capsys.readouterr().err


def test_basicsrs_own_pipeline_gives_patches_of_gt_size(here):
    script = 'import sys, hat_plugin\nfrom basicsr.train import train_pipeline\ntrain_pipeline(".")\n'
    (here / 'run.py').write_text(script)
    training.write_options(here / 'train.yml', **STAGES, train__total_iter=7)
    code, output = training.finish(training.start(['run.py', '-opt', 'train.yml'], here))
    assert code == 0, output
    assert re.search(r'iter: +7,', output)
    assert 'Batch size per gpu: 4' in output
