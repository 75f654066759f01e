"""Two ranks under torchrun with gloo: training, shared validation, checkpoints, resume; equal to one rank."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest
import torch
import training

from hat_plugin.cli import main
from hat_plugin.engine import distributed
from hat_plugin.errors import HatPluginError

WHOLE_BATCH = {
    'network_g__drop_path_rate': 0.0,  # ranks draw different ones
    'datasets__train__batch_size_per_gpu': 2,
    'train__total_batch_size': 4,
    'train__total_iter': 6,
    'logger__save_checkpoint_freq': 3,
}


def torchrun(here: Path, *arguments: str):
    launcher = [
        '-m',
        'torch.distributed.run',
        '--nproc_per_node=2',
        '--rdzv-backend=c10d',
        '--rdzv-endpoint=localhost:0',
    ]
    return training.start([*launcher, '-m', *arguments, '--launcher', 'pytorch'], here)


@pytest.fixture
def here(tmp_path, photos, monkeypatch) -> Path:
    training.write_photos(tmp_path, {name: photos[name] for name in photos})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def psnrs(run: Path) -> list[str]:
    text = ''.join(path.read_text() for path in sorted(run.glob('train_*.log')))
    return re.findall(r'# psnr: ([\d.]+)', text)


@pytest.mark.parametrize('batch', [2, 1], ids=['whole', 'accumulated'])
def test_two_ranks_train_validate_save_and_resume_as_one(here, batch):
    one = training.write_options(here / 'one.yml', name='one', **WHOLE_BATCH)
    assert main(['train', '-opt', str(one)]) == 0
    expected = training.networks(here / 'experiments/one')

    of_two = {**WHOLE_BATCH, 'datasets__train__batch_size_per_gpu': batch}  # of each rank's two samples
    two = training.write_options(here / 'two.yml', name='two', **{**of_two, 'train__total_iter': 3})
    code, output = training.finish(torchrun(here, 'hat_plugin.train', '-opt', str(two)))
    assert code == 0, output
    training.write_options(two, name='two', **of_two)
    code, output = training.finish(torchrun(here, 'hat_plugin.train', '-opt', str(two), '--auto_resume'))
    assert code == 0, output
    assert 'Resuming training from epoch: 1, iter: 3.' in output
    assert output.count('Validation held_out') == 2  # rank 0 alone speaks

    found = training.networks(here / 'experiments/two')
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert psnrs(here / 'experiments/two')[-1] == psnrs(here / 'experiments/one')[-1]
    state = torch.load(here / 'experiments/two/training_states/6.state', weights_only=True)
    assert len(state['rng']) == 2
    assert state['progress']['samples'] == 24


def test_two_ranks_test_as_one(here):
    one = training.write_options(here / 'train.yml', train__total_iter=1)
    assert main(['train', '-opt', str(one)]) == 0
    options = {
        'datasets': {'test_1': training.OPTIONS['datasets']['val']},
        'path': {'pretrain_network_g': 'experiments/tiny/models/net_g_latest.pth'},
        'val': {'save_img': True, 'suffix': None, 'metrics': training.OPTIONS['val']['metrics']},
    }
    reports = {}
    for name in ('alone', 'both'):
        file = training.write_options(here / f'{name}.yml', name=name, **options)
        if name == 'alone':
            assert main(['test', '-opt', str(file)]) == 0
        else:
            code, output = training.finish(torchrun(here, 'hat_plugin.test', '-opt', str(file)))
            assert code == 0, output
        reports[name] = json.loads((here / 'results' / name / 'metrics.json').read_text())
        assert len(list((here / 'results' / name / 'visualization/held_out').glob(f'*_{name}.png'))) == 2
    assert reports['alone']['datasets'] == reports['both']['datasets']
    assert reports['both']['protocol'] == {'psnr': 'calculate_psnr on Y, border 2, uint8'}


def test_sigterm_to_torchrun_saves_on_both_ranks(here):
    options = training.write_options(
        here / 'o.yml', **{**WHOLE_BATCH, 'train__total_iter': 100_000, 'logger__save_checkpoint_freq': 100_000}
    )
    process = torchrun(here, 'hat_plugin.train', '-opt', str(options))
    assert process.stdout is not None
    for line in process.stdout:
        if 'iter:       2,' in line:
            process.send_signal(signal.SIGTERM)
            break
    _, output = training.finish(process)
    assert 'Stopped by a signal' in output
    states = list((here / 'experiments/tiny/training_states').glob('*.state'))
    assert len(states) == 1
    assert len(torch.load(states[0], weights_only=True)['rng']) == 2


def test_a_picture_that_one_rank_cannot_read_costs_no_rank_an_iteration(here):
    broken = sorted((here / 'data/gt').iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:100])
    changes = {**WHOLE_BATCH, 'logger__save_checkpoint_freq': 1000, 'datasets__train__use_shuffle': False}
    options = training.write_options(here / 'o.yml', **changes)
    code, output = training.finish(torchrun(here, 'hat_plugin.train', '-opt', str(options)))
    assert code != 0
    assert broken.name in output
    assert 'another rank met an error' in output
    assert 'Connection reset' not in output
    assert [path.name for path in here.glob('experiments/tiny/training_states/*')] == ['1.state']


def test_a_launcher_without_its_environment_is_named(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HatPluginError, match='RANK.*torchrun'):
        distributed.initialise('pytorch')
    with pytest.raises(HatPluginError, match='SLURM_PROCID.*srun'):
        distributed.initialise('slurm')


def test_slurm_variables_become_torchs(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    given = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '1', 'SLURM_NODELIST': 'n1', 'SLURM_LOCALID': '0'}
    for name, value in {**given, 'MASTER_ADDR': '127.0.0.1'}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    try:
        world = distributed.initialise('slurm', port=port)
        assert (world.rank, world.size, world.distributed) == (0, 1, True)
        assert distributed.gather_objects('x') == ['x']
        assert distributed.from_main(3) == 3
        assert distributed.any_rank(True)
    finally:
        distributed.finish()
