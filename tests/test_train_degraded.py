"""Training and checking with data that is degraded as it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.cli import main

NETWORK = training.NETWORK | {'upscale': 1, 'upsampler': ''}
NOISE = {'type': 'GaussianDenoisingDataset', 'sigma': [0, 50]}, {'type': 'GaussianDenoisingDataset', 'sigma': 25}
JPEG = {'type': 'JPEGDataset', 'quality': [10, 40], 'gray': True}, {'type': 'JPEGDataset', 'quality': 10, 'gray': True}


@pytest.fixture
def here(tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photographs."""
    training.write_photos(tmp_path, {name: photos[name] for name in photos})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, kinds: tuple[dict[str, Any], dict[str, Any]], **changes: Any) -> Path:
    loader = {'name': 'photos', 'gt_size': 16, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}
    channels = 1 if kinds[0].get('gray') else 3
    wanted: dict[str, Any] = {
        'scale': 1,
        'network_g': NETWORK | {'in_chans': channels},
        'datasets__train': {**loader, **kinds[0], 'dataroot_gt': 'data/gt'},
        'datasets__val': {'name': 'held_out', **kinds[1], 'dataroot_gt': 'data/val_gt'},
        'train__total_iter': 2,
        'val__val_freq': 1,
        'val__metrics__psnr': {'type': 'calculate_psnr', 'crop_border': 0},
        'logger__save_checkpoint_freq': 1,
    }
    return training.write_options(path, **wanted | changes)


@pytest.mark.parametrize(('kinds', 'lowest', 'highest'), [(NOISE, 19.5, 22), (JPEG, 24, 36)])
def test_two_iterations_and_a_plausible_validation(
    here: Path, kinds: tuple[dict[str, Any], dict[str, Any]], lowest: float, highest: float
) -> None:
    options = write(here / 'options.yml', kinds, path__pretrain_network_g='same.pth', train__optim_g__lr=1e-6)
    arguments = NETWORK | {'in_chans': 1 if kinds[0].get('gray') else 3}
    network = HAT(**{key: value for key, value in arguments.items() if key != 'type'})
    torch.nn.init.zeros_(network.conv_last.weight)  # it passes its input on: validation measures the input
    torch.nn.init.zeros_(network.conv_last.bias)
    torch.save({'params': network.state_dict()}, 'same.pth')
    assert main(['train', '-opt', str(options)]) == 0
    run = here / 'experiments' / 'tiny'
    state = torch.load(run / 'training_states' / '2.state', weights_only=True)
    assert lowest < state['best_metric_results']['held_out']['psnr']['val'] < highest


def test_a_resumed_run_sees_the_same_noise(here: Path) -> None:
    changes = {'train__optim_g__lr': 1e-3, 'train__total_iter': 6}
    assert main(['train', '-opt', str(write(here / 'whole.yml', NOISE, name='whole', **changes))]) == 0
    options = write(here / 'options.yml', NOISE, **changes)
    assert main(['train', '-opt', str(options), '--force_yml', 'train:total_iter=3']) == 0
    workers = 'datasets:train:num_worker_per_gpu=1'
    assert main(['train', '-opt', str(options), '--auto_resume', '--force_yml', workers]) == 0
    whole, resumed = (training.networks(here / 'experiments' / name) for name in ('whole', 'tiny'))
    assert training.same(resumed, whole)


def test_check_with_and_without_data(here: Path, cli: Callable[..., Any]) -> None:
    options = write(here / 'options.yml', NOISE)
    outcome = cli('check', '-opt', options, '--workers', '0')
    assert outcome.code == 0, outcome.err
    assert 'data train (photos): 10 images read, 0 pairs, all good' in outcome.out
    (here / 'data' / 'gt' / 'coffee0.png').write_bytes(b'no picture')
    outcome = cli('check', '-opt', options, '--workers', '0', '--force_yml', 'datasets:train:gt_size=44')
    assert outcome.code == 1
    assert 'coffee0.png: is damaged' in outcome.out
    assert 'smaller than gt_size 44' in outcome.out  # all are 40 wide
    published = {'sigma_type': 'random', 'sigma_range': [0, 50], 'in_ch': 3, 'dataroot_lq': 'none'}
    kinds = {'type': 'Dataset_GaussianDenoising', **published}, NOISE[1]
    options = write(here / 'options.yml', kinds, datasets__train__gt_size=44)
    assert cli('check', '-opt', options, '--no-data').code == 0
    outcome = cli('check', '-opt', options, '--workers', '0')
    assert outcome.out.count('    - ') == 1  # the damaged one; this data set enlarges small pictures
