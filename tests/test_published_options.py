"""Restormer's and NAFNet's published option files: each is right here as it stands, and no key is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from option_examples import problems
from published_options import TESTING, TRAINING, published

from hat_plugin.engine.options import notes, prepare_options, registered

# What stands in for a network or a loss that this installation does not have.
STAND_IN_NETWORK = {'type': 'HAT', 'upscale': 1, 'upsampler': '', 'window_size': 8, 'embed_dim': 12, 'depths': [1],
                    'num_heads': [2], 'compress_ratio': 4, 'squeeze_factor': 6}  # fmt: skip


def missing(opt: dict[str, Any]) -> list[str]:
    """The types of an option file that nothing registers here."""
    kinds = [('ARCH_REGISTRY', opt['network_g'])]
    kinds += [('DATASET_REGISTRY', section) for section in opt['datasets'].values()]
    kinds += [('LOSS_REGISTRY', opt['train']['pixel_opt'])] if 'train' in opt else []
    return [section['type'] for registry, section in kinds if registered(registry, section['type']) is None]


def stood_in(name: str) -> dict[str, Any]:
    """A published file with a small network and the L1 loss where what it names is not registered."""
    opt = published(name)
    if registered('ARCH_REGISTRY', opt['network_g']['type']) is None:
        channels = opt['network_g'].get('inp_channels', 3)
        opt['network_g'] = {**STAND_IN_NETWORK, 'in_chans': channels}
    if registered('LOSS_REGISTRY', opt['train']['pixel_opt']['type']) is None:
        opt['train']['pixel_opt']['type'] = 'L1Loss'
    if absent := missing(opt):
        pytest.skip(f'not registered: {", ".join(absent)}')
    return opt


@pytest.mark.parametrize('name', TRAINING)
def test_published_training_files_pass_basicsr_check(name: str, tmp_path: Path, cli: Any) -> None:
    if absent := missing(TRAINING[name]):
        pytest.skip(f'not registered: {", ".join(absent)}')
    file = tmp_path / 'published.yml'
    file.write_text(yaml.safe_dump(TRAINING[name], sort_keys=False))
    done = cli('check', '--no-data', '-opt', file)
    assert done.code == 0, done.err
    assert 'the training options are right' in done.out


@pytest.mark.parametrize('name', ['restormer_real', 'nafnet_gopro_32'])
def test_basicsr_check_reports_on_the_stage_that_needs_most(name: str, tmp_path: Path, cli: Any) -> None:
    opt = {**stood_in(name), 'network_g': {**STAND_IN_NETWORK, 'in_chans': 3}}
    file = tmp_path / 'stood_in.yml'
    file.write_text(yaml.safe_dump(opt, sort_keys=False))
    done = cli('check', '--no-data', '-opt', file)
    assert done.code == 0, done.err
    wanted = {'restormer_real': '4 x 192x192', 'nafnet_gopro_32': '4 x 256x256'}[name]
    assert f'memory of a training step of {wanted}: about' in done.out


@pytest.mark.parametrize('name', TESTING)
def test_published_test_files_pass_basicsr_check(name: str, tmp_path: Path, cli: Any) -> None:
    if absent := missing(TESTING[name]):
        pytest.skip(f'not registered: {", ".join(absent)}')
    file = tmp_path / 'published.yml'
    file.write_text(yaml.safe_dump(TESTING[name], sort_keys=False))
    done = cli('check', '--no-data', '-opt', file)
    assert done.code == 0, done.err


@pytest.mark.parametrize('name', TRAINING)
def test_all_but_the_network_and_the_loss_is_right_by_itself(name: str) -> None:
    assert problems(stood_in(name)) == []


@pytest.mark.parametrize('name', TRAINING)
def test_they_can_be_prepared_and_say_what_has_no_effect(name: str, tmp_path: Path) -> None:
    opt = stood_in(name)
    found = [line.split(': has no effect')[0] for line in notes(opt, is_train=True)]
    if name.startswith('nafnet'):
        assert found == []
    else:
        mixed = opt['train']['mixing_augs']['mixup']
        idle = [] if mixed else ['train: mixing_augs: mixup_beta', 'train: mixing_augs: use_identity']
        assert found == [*idle, 'val: max_minibatch']
    prepared = prepare_options(opt, root_path=tmp_path, is_train=True)
    assert prepared['val']['val_freq'] in (4000, 20000)
    assert type(prepared['val']['val_freq']) is int
    if name.startswith('nafnet'):
        assert prepared['datasets']['train']['use_hflip'] is opt['datasets']['train']['use_flip']
        assert 'use_flip' not in prepared['datasets']['train']


@pytest.mark.parametrize(
    ('name', 'section', 'change', 'line'),
    [
        ('restormer_motion', 'train', {'use_grad_clip': False, 'grad_clip': 0.5}, 'remove one of the two'),
        ('restormer_motion', 'train', {'mixing_augs': {'mixupp': True}}, "did you mean 'mixup'?"),
        ('restormer_motion', 'train', {'mixing_augs': {'mixup_beta': 0}}, 'mixup_beta'),
        ('restormer_motion', 'val', {'grids': True}, 'val: grids: unknown option'),
        ('nafnet_gopro_64', 'train', {'mixup': True}, 'mixing_augs'),
        ('nafnet_gopro_64', 'val', {'grids': True}, 'add crop_size_h or crop_size_h_ratio'),
        ('nafnet_gopro_64', 'val', {'grids': True, 'crop_size_h': 64}, 'add crop_size_w or crop_size_w_ratio'),
        ('nafnet_gopro_64', 'val', {'crop_size_h_ratio': 1.5}, 'crop_size_h_ratio'),
    ],
)
def test_wrong_values_are_named(name: str, section: str, change: dict[str, Any], line: str) -> None:
    opt = stood_in(name)
    opt[section].update(change)
    found = problems(opt)
    assert len(found) == 1
    assert line in found[0]


@pytest.mark.parametrize(
    ('section', 'change', 'line'),
    [
        ('val', {'trans_num': 1}, 'val: trans_num: has no effect here'),
        ('val', {'max_minibatch': 8}, 'val: max_minibatch: has no effect here: only with grids'),
        ('val', {'crop_size_h': 64}, 'val: crop_size_h: has no effect here: only with grids'),
        ('val', {'rgb2bgr': False}, 'val: rgb2bgr: has no effect here'),
        (
            'val',
            {'grids': True, 'crop_size_h': 64, 'crop_size_h_ratio': 0.5, 'crop_size_w': 64, 'max_minibatch': 2},
            'val: crop_size_h_ratio: has no effect here: crop_size_h goes before it',
        ),
    ],
)
def test_keys_without_effect_are_told_of(section: str, change: dict[str, Any], line: str) -> None:
    opt = stood_in('nafnet_gopro_32')
    opt[section].update(change)
    assert problems(opt) == []
    found = notes(opt, is_train=True)
    assert len(found) == 1
    assert line in found[0]


def test_tiles_and_grids_do_not_mix_in_silence() -> None:
    opt = stood_in('nafnet_gopro_32')
    opt['val'].update(grids=True, crop_size_h=64, crop_size_w=64)
    opt['tile'] = {'tile_size': 64}
    assert notes(opt, is_train=True) == ['tile: has no effect here: val: grids cuts the pictures']


def test_nafnets_and_basicsrs_word_for_flips_do_not_mix() -> None:
    opt = stood_in('nafnet_sidd_32')
    opt['datasets']['train']['use_hflip'] = True
    assert problems(opt) == ["datasets: train: use_flip: unknown option; did you mean 'use_hflip'?"]


def test_augmentations_are_for_training() -> None:
    opt = stood_in('restormer_motion')
    opt['datasets']['val']['geometric_augs'] = True
    assert 'datasets: val: geometric_augs: has no effect here: it is for training' in notes(opt, is_train=True)
