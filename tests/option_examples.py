"""A right option file to make wrong ones of, for tests."""

from __future__ import annotations

import copy
from typing import Any

from hat_plugin.engine.options import check_options
from hat_plugin.errors import OptionsError

TRAIN: dict[str, Any] = {
    'name': 'run',
    'model_type': 'SRModel',
    'scale': 2,
    'num_gpu': 0,
    'manual_seed': 0,
    'datasets': {
        'train': {
            'name': 'photos',
            'type': 'PairedImageDataset',
            'dataroot_gt': 'gt',
            'dataroot_lq': 'lq',
            'io_backend': {'type': 'disk'},
            'gt_size': 64,
            'use_hflip': True,
            'use_rot': True,
            'num_worker_per_gpu': 0,
            'batch_size_per_gpu': 2,
        },
        'val_1': {
            'name': 'Set5',
            'type': 'PairedImageDataset',
            'dataroot_gt': 'gt',
            'dataroot_lq': 'lq',
            'io_backend': {'type': 'disk'},
        },
    },
    'network_g': {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2},
    'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
    'train': {
        'total_iter': 100,
        'ema_decay': 0.9,
        'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {
        'val_freq': 5e3,
        'save_img': False,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True, 'better': 'higher'}},
    },
    'logger': {'print_freq': 10, 'save_checkpoint_freq': 50, 'use_tb_logger': False, 'wandb': {'project': None}},
}


def options(**changes: Any) -> dict[str, Any]:
    """TRAIN with places (``train__optim_g__lr``) set; the value ... removes a key."""
    opt = copy.deepcopy(TRAIN)
    for place, value in changes.items():
        *sections, key = place.split('__')
        target = opt
        for section in sections:
            target = target[section]
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return opt


def problems(opt: dict[str, Any], *, is_train: bool = True, need_data: bool = False) -> list[str]:
    """The lines of `check_options`."""
    try:
        check_options(opt, 'file.yml', is_train=is_train, need_data=need_data)
    except OptionsError as error:
        return error.problems
    return []


def places(section: dict[str, Any], above: str = '') -> list[str]:
    """All places of a section, as `options` writes them."""
    found = []
    for key, value in section.items():
        found += [above + key, *(places(value, f'{above}{key}__') if isinstance(value, dict) else [])]
    return found
