"""A small training run for tests: real photographs in folders, a tiny HAT, an option file."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

NETWORK = {
    'type': 'HAT',
    'upscale': 2,
    'in_chans': 3,
    'window_size': 4,
    'compress_ratio': 2,
    'squeeze_factor': 4,
    'conv_scale': 0.5,
    'overlap_ratio': 0.5,
    'depths': [2],
    'embed_dim': 8,
    'num_heads': [2],
    'mlp_ratio': 2,
    'upsampler': 'pixelshuffledirect',
    'drop_path_rate': 0.1,  # draws random numbers in the forward pass, which a resumed run must draw again
}
OPTIONS: dict[str, Any] = {
    'name': 'tiny',
    'model_type': 'HATModel',
    'scale': 2,
    'num_gpu': 0,
    'manual_seed': 3,
    'datasets': {
        'train': {
            'name': 'photos',
            'type': 'PairedImageDataset',
            'dataroot_gt': 'data/gt',
            'dataroot_lq': 'data/lq',
            'io_backend': {'type': 'disk'},
            'gt_size': 16,
            'use_hflip': True,
            'use_rot': True,
            'use_shuffle': True,
            'num_worker_per_gpu': 0,
            'batch_size_per_gpu': 2,
        },
        'val': {
            'name': 'held_out',
            'type': 'PairedImageDataset',
            'dataroot_gt': 'data/val_gt',
            'dataroot_lq': 'data/val_lq',
            'io_backend': {'type': 'disk'},
        },
    },
    'network_g': NETWORK,
    'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
    'train': {
        'ema_decay': 0.9,
        'optim_g': {'type': 'Adam', 'lr': 2.0e-3, 'betas': [0.9, 0.99]},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [8], 'gamma': 0.5},
        'total_iter': 12,
        'warmup_iter': 3,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {
        'val_freq': 5,
        'save_img': False,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}},
    },
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 4, 'use_tb_logger': False},
    'dist_params': {'backend': 'nccl', 'port': 29500},
}


def write_photos(root: Path, photos: dict[str, np.ndarray]) -> None:
    """Pieces of photographs (RGB uint8), and their halves by area as LQ, below root/data."""
    for folder in ('gt', 'lq', 'val_gt', 'val_lq'):
        (root / 'data' / folder).mkdir(parents=True, exist_ok=True)
    for number, (name, photo) in enumerate(sorted(photos.items())):
        for part in range(3):
            gt = np.ascontiguousarray(photo[40 * part : 40 * part + 48, 60 * part : 60 * part + 40, ::-1])
            prefix = 'val_' if number == 0 and part < 2 else ''
            lq = cv2.resize(gt, (20, 24), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(root / 'data' / f'{prefix}gt' / f'{name}{part}.png'), gt)
            cv2.imwrite(str(root / 'data' / f'{prefix}lq' / f'{name}{part}.png'), lq)


def write_options(path: Path, /, **changes: Any) -> Path:
    """OPTIONS with changes (``train__total_iter=5`` for nested keys) as a YAML file."""
    options = copy.deepcopy(OPTIONS)
    for place, value in changes.items():
        target, *rest = options, *place.split('__')
        for key in rest[:-1]:
            target = target.setdefault(key, {})
        target[rest[-1]] = value
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def start(arguments: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of this Python in `cwd`, one thread, this checkout first on its path."""
    checkout = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': checkout, 'PYTHONUNBUFFERED': '1', **environment}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def networks(run: Path, suffix: str = 'latest') -> dict[str, torch.Tensor]:
    """All tensors of a run's network file, parameters and their averages."""
    content = torch.load(run / 'models' / f'net_g_{suffix}.pth', weights_only=True)
    return {f'{entry}.{name}': value for entry, state in content.items() for name, value in state.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
