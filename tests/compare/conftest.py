"""Small comparisons on real photographs, in a folder of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from hat_plugin.data.bicubic import imresize

HAT = {
    'type': 'HAT', 'upscale': 2, 'window_size': 4, 'compress_ratio': 2, 'squeeze_factor': 4, 'overlap_ratio': 0.5,
    'depths': [1], 'embed_dim': 8, 'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect',
}  # fmt: skip
SWINIR = {
    'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 4, 'depths': [1], 'embed_dim': 8, 'num_heads': [2],
    'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect', 'img_range': 1.0, 'resi_connection': '1conv',
}  # fmt: skip
PAIRS = {'type': 'PairedCropDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'}}
COMPARISON: dict[str, Any] = {
    'name': 'small',
    'model_type': 'RestorationModel',
    'scale': 2,
    'num_gpu': 0,
    'manual_seed': 1,
    'networks': {'HAT': HAT, 'SwinIR': SWINIR},
    'datasets': {
        'train': {
            'name': 'train', **PAIRS, 'gt_size': 16, 'use_hflip': True, 'use_rot': True, 'use_shuffle': True,
            'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 10,
        },
        'test_1': {'name': 'photos', **PAIRS},
    },
    'train': {
        'total_iter': 2,
        'warmup_iter': -1,
        'ema_decay': 0.5,
        'optim_g': {'type': 'Adam', 'lr': 1.0e-3},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [8], 'gamma': 0.5},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {
        'metrics': {
            'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True, 'better': 'higher'},
            'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True, 'better': 'higher'},
        }
    },
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 10},
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six pairs of photographs; the current directory."""
    monkeypatch.chdir(tmp_path)
    for folder in ('gt', 'lq'):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(['astronaut', 'coffee', 'chelsea'] * 2):
        truth = photos.small(name, 48, 64, top=40 + 30 * number)[..., ::-1]
        cv2.imwrite(str(tmp_path / 'gt' / f'{name}{number}.png'), truth)
        cv2.imwrite(str(tmp_path / 'lq' / f'{name}{number}.png'), imresize(truth, 0.5))
    return tmp_path


@pytest.fixture
def comparison() -> dict[str, Any]:
    """Options of a comparison of two tiny networks, to be changed at will."""
    return copy.deepcopy(COMPARISON)


@pytest.fixture
def written(work: Path) -> Callable[..., str]:
    """``written(options, 'x.yml')``: an option file in the current directory."""

    def write(options: dict[str, Any], name: str = 'small.yml') -> str:
        (work / name).write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        return name

    return write
