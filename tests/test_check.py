"""``basicsr check``: what it prints, what it finds in data, and its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from hat_plugin.check_data import Checks, check_dataset
from hat_plugin.data.lmdb_io import LmdbWriter, encode_image
from hat_plugin.engine.networks import build

NETWORK = {
    'type': 'HAT', 'upscale': 2, 'window_size': 4, 'compress_ratio': 2, 'squeeze_factor': 4, 'overlap_ratio': 0.5,
    'depths': [1], 'embed_dim': 8, 'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect',
}  # fmt: skip
Run = Callable[..., Any]


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def work(tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pairs and a training file; the current directory."""
    for name in ('astronaut', 'coffee', 'chelsea'):
        image = photos.small(name, 32, 48)
        write(tmp_path / 'gt' / f'{name}.png', image)
        write(tmp_path / 'lq' / f'{name}.png', cv2.resize(image, (24, 16), interpolation=cv2.INTER_AREA))
    data = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'}}
    train = {'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}
    opt = {
        'name': 'tiny', 'model_type': 'HATModel', 'scale': 2, 'num_gpu': 0,
        'datasets': {'train': {'name': 'photos', **data, **train}, 'val': {'name': 'held', **data}},
        'network_g': NETWORK,
        'path': {'pretrain_network_g': None},
        'train': {
            'total_iter': 4, 'optim_g': {'type': 'Adam', 'lr': 1e-4},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [4]}, 'pixel_opt': {'type': 'L1Loss'},
        },
        'val': {'val_freq': 2, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2},
    }  # fmt: skip
    (tmp_path / 'tiny.yml').write_text(yaml.safe_dump(opt), encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(cli: Run, *arguments: str) -> Any:
    return cli('check', '-opt', 'tiny.yml', '--workers', '0', *arguments)


def test_all_is_well(work: Path, cli: Run) -> None:
    outcome = check(cli)
    assert outcome.code == 0, outcome.err
    parameters = sum(p.numel() for p in build(NETWORK).parameters())
    assert f'network_g: HAT, {parameters:,} parameters' in outcome.out
    assert 'MACs for a 16x16 input of 3 channels' in outcome.out
    assert 'without the attention products' in outcome.out
    assert 'memory of a training step of 2 x 16x16: about' in outcome.out
    assert 'memory of a 256x256 picture: about' in outcome.out
    assert 'data train (photos): 6 images read, 3 pairs, all good' in outcome.out
    assert 'note: train: scheduler: milestones: [4]' in outcome.out
    assert sorted(entry.name for entry in work.iterdir()) == ['gt', 'lq', 'tiny.yml']


def test_a_test_files_macs_are_those_of_a_64x64_input_or_a_whole_256x256(work: Path, cli: Run) -> None:
    opt = yaml.safe_load((work / 'tiny.yml').read_text(encoding='utf-8'))
    opt = {key: opt[key] for key in ('name', 'model_type', 'scale', 'num_gpu', 'network_g')}
    opt |= {'datasets': {'test': {'name': 'photos', 'type': 'SingleImageDataset', 'dataroot_lq': 'lq'}}, 'path': {}}
    opt['datasets']['test']['io_backend'] = {'type': 'disk'}
    for scale, side in ((2, 64), (1, 256)):
        opt['scale'] = opt['network_g']['upscale'] = scale
        (work / 'tiny.yml').write_text(yaml.safe_dump(opt), encoding='utf-8')
        outcome = cli('check', '--test', '--no-data', '-opt', 'tiny.yml')
        assert outcome.code == 0, outcome.err
        assert f'MACs for a {side}x{side} input of 3 channels' in outcome.out


def test_without_data_nothing_need_be_there(work: Path, cli: Run) -> None:
    missing = ['num_gpu=1', 'datasets:train:dataroot_gt=nowhere', 'path:pretrain_network_g=nowhere.pth']
    outcome = check(cli, '--no-data', '--force_yml', *missing)
    assert outcome.code == 0
    assert 'not counted' not in outcome.out
    outcome = check(cli, '--force_yml', *missing)
    assert outcome.code == 2
    assert 'nowhere: no such folder' in outcome.err
    assert 'nowhere.pth: no such file' in outcome.err


def test_wrong_options_and_networks_that_do_not_build(work: Path, cli: Run) -> None:
    outcome = check(cli, '--force_yml', 'train:ema_decya=0.9', 'name=../x')
    assert outcome.code == 2
    assert "did you mean 'ema_decay'" in outcome.err
    assert 'name: ' in outcome.err
    outcome = check(cli, '--no-data', '--force_yml', 'network_g:num_heads=[3]')
    assert outcome.code == 2
    assert 'network_g: HAT cannot be built' in outcome.err


def test_bad_pictures_are_named(work: Path, cli: Run, photos: Any) -> None:
    whole = (work / 'gt' / 'coffee.png').read_bytes()
    (work / 'gt' / 'coffee.png').write_bytes(whole[: len(whole) // 2])
    (work / 'lq' / 'astronaut.png').unlink()
    write(work / 'lq' / 'chelsea.png', photos.small('chelsea', 15, 24))
    write(work / 'gt' / 'small.png', photos.small('rocket', 16, 16))
    write(work / 'lq' / 'small.png', photos.small('rocket', 8, 8))
    outcome = check(cli)
    assert outcome.code == 1
    train = outcome.out[outcome.out.index('data train') : outcome.out.index('data val')]
    assert '4 BAD' in train
    assert 'gt/coffee.png' in train
    assert 'gt/astronaut.png: has no partner' in train
    assert 'lq/chelsea.png: is 24x15; its ground truth is 48x32' in train
    assert 'gt/small.png: is 16x16, smaller than gt_size 32' in train
    assert 'small.png' not in outcome.out[outcome.out.index('data val') :]


@pytest.mark.parametrize('kind', ['png', 'raw'])
def test_an_lmdb_is_read_key_by_key(tmp_path: Path, photos: Any, kind: str) -> None:
    for root, (height, width) in {'gt.lmdb': (32, 48), 'lq.lmdb': (16, 24)}.items():
        with LmdbWriter(tmp_path / root, kind=kind) as writer:
            for name in photos:
                image = photos.small(name, height, width)
                writer.put(name, encode_image(image, kind), image.shape)
    section = {
        'name': 'x',
        'type': 'PairedCropDataset',
        'dataroot_gt': str(tmp_path / 'gt.lmdb'),
        'dataroot_lq': str(tmp_path / 'lq.lmdb'),
        'io_backend': {'type': 'lmdb'},
    }
    report = check_dataset(section, Checks(scale=2, exact=True), quiet=True)
    assert (report.images, report.pairs, report.problems) == (8, 4, [])
    report = check_dataset(section, Checks(scale=4, exact=True), quiet=True)
    assert len(report.problems) == 4
    report = check_dataset({**section, 'type': 'PairedImageDataset'}, Checks(scale=2, exact=True), quiet=True)
    assert ['raw pixels, which PairedImageDataset cannot read' in line for line in report.problems] == [True] * (
        kind == 'raw'
    )
    data = tmp_path / 'gt.lmdb' / 'data.mdb'
    data.write_bytes(data.read_bytes()[:5000])
    report = check_dataset(section, Checks(scale=2), quiet=True)
    assert len(report.problems) == 1
    assert 'gt.lmdb' in report.problems[0]


def test_one_folder_for_both_sides_of_a_pair_is_compared(tmp_path: Path, photos: Any) -> None:
    write(tmp_path / 'gt' / 'a.png', photos.small('astronaut', 32, 48))
    folder = str(tmp_path / 'gt')
    section = {'type': 'PairedCropDataset', 'dataroot_gt': folder, 'dataroot_lq': folder}
    report = check_dataset(section, Checks(scale=2), quiet=True)
    assert report.pairs == 1
    assert 'scale 2' in report.problems[0]
    assert check_dataset(section, Checks(scale=1), quiet=True).problems == []


def test_several_processes_find_the_same(tmp_path: Path, photos: Any) -> None:
    for index in range(40):
        write(tmp_path / 'lq' / f'{index:02}.png', photos.small('coffee', 8, 8))
    (tmp_path / 'lq' / '07.png').write_bytes(b'no picture')
    section = {'name': 'x', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path / 'lq')}
    alone = check_dataset(section, Checks(), workers=0, quiet=True)
    several = check_dataset(section, Checks(), workers=2, quiet=True)
    assert alone == several
    assert alone.images == 40
    assert [problem for problem in alone.problems if '07.png' in problem] == alone.problems != []


def test_weights_that_fit_and_weights_that_do_not(work: Path, cli: Run) -> None:
    from hat_plugin.archs.hat_arch import HAT

    arguments = {key: value for key, value in NETWORK.items() if key != 'type'}
    torch.save({'params_ema': HAT(**arguments).state_dict()}, work / 'w.pth')
    outcome = check(cli, '--force_yml', 'path:pretrain_network_g=w.pth')
    assert outcome.code == 0
    assert 'weights w.pth [params_ema]: fit' in outcome.out
    wider = ['path:pretrain_network_g=w.pth', 'network_g:embed_dim=16']
    outcome = check(cli, '--force_yml', *wider)
    assert outcome.code == 2
    assert 'does not fit HAT' in outcome.err


def test_the_kind_is_read_off_the_file_or_said(work: Path, cli: Run) -> None:
    assert 'the training options are right' in check(cli, '--no-data').out
    outcome = check(cli, '--no-data', '--test')
    assert outcome.code == 2
    assert 'datasets: train: this set is of another phase' in outcome.err


def test_what_a_constructor_refuses_is_listed_with_all_else(work: Path, cli: Run) -> None:
    outcome = check(cli, '--no-data', '--force_yml', 'train:ema_decya=1', 'network_g:embed_dim=13')
    assert outcome.code == 2
    assert "did you mean 'ema_decay'?" in outcome.err
    assert 'network_g: HAT cannot be built: ' in outcome.err
    assert 'are right' not in outcome.out


def test_a_file_filled_up_with_zeros_is_named(work: Path, cli: Run, photos: Any) -> None:
    write(work / 'gt' / 'coffee.jpg', photos.small('coffee', 32, 48))
    (work / 'gt' / 'coffee.png').unlink()
    content = (work / 'gt' / 'coffee.jpg').read_bytes()
    (work / 'gt' / 'coffee.jpg').write_bytes(content[:-300] + bytes(300))
    outcome = check(cli)
    assert outcome.code == 1
    assert 'coffee.jpg: is cut short' in outcome.out


@pytest.mark.parametrize('workers', ['-3', '1.5', 'all'])
def test_workers_are_counted(work: Path, cli: Run, workers: str) -> None:
    outcome = cli('check', '-opt', 'tiny.yml', f'--workers={workers}')
    assert outcome.code == 2
    assert f"'{workers}' is no whole number from 0 on" in outcome.err
