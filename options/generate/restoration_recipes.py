"""How the networks of the restoration files are trained. [R]: read in the project's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        data: what goes into the training set's section beside its place: patches, batches, flips.
        train: the section `train`.
        source: where it comes from.
        hardware: what it was published on, or is for.
        freq: iterations between validations.
    """

    data: dict[str, Any]
    train: dict[str, Any]
    source: str
    hardware: str
    freq: int = 5000
    val: dict[str, Any] = field(default_factory=dict)


FLIPS = {'use_hflip': True, 'use_rot': True}
L1 = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
STAGES = {
    'gt_size': 384,
    'mini_batch_sizes': [8, 5, 4, 2, 1, 1],
    'iters': [92000, 64000, 48000, 36000, 36000, 24000],
    'gt_sizes': [128, 160, 192, 256, 320, 384],
}
EIGHT = 'total_batch_size keeps the batch on any number of GPUs'


def adamw(rate: float, decay: float, betas: list[float]) -> dict[str, Any]:
    """`optim_g`."""
    return {'type': 'AdamW', 'lr': rate, 'weight_decay': decay, 'betas': betas}


def _constant_then_cosine(**more: Any) -> dict[str, Any]:
    return {
        'total_iter': 300000,
        'warmup_iter': -1,
        'total_batch_size': 64,
        **more,
        'optim_g': adamw(0.0003, 0.0001, [0.9, 0.999]),
        'scheduler': {
            'type': 'CosineAnnealingRestartCyclicLR',
            'periods': [92000, 208000],
            'restart_weights': [1, 1],
            'eta_mins': [0.0003, 0.000001],
        },
        'pixel_opt': L1,
    }


def restormer_recipe(mixup: bool) -> Recipe:
    """Progressive patches, as published; mixup in denoising only."""
    mixing = {'mixing_augs': {'mixup': True, 'mixup_beta': 1.2, 'use_identity': True}} if mixup else {}
    return Recipe(
        {'geometric_augs': True, 'batch_size_per_gpu': 8, **STAGES},
        _constant_then_cosine(use_grad_clip=True, **mixing),
        'official training settings of Restormer [R]; progressive patches in docs/published_options.md',
        f'published 8 GPUs of 8, 5, 4, 2, 1, 1 patches; {EIGHT}',
        val={'window_size': 8},
    )


HATUNET_RECIPE = Recipe(
    {
        **FLIPS,
        'batch_size_per_gpu': 8,
        'gt_size': 384,
        'mini_batch_sizes': [8, 4, 2, 1, 1],
        'iters': [92000, 112000, 36000, 36000, 24000],
        'gt_sizes': [128, 192, 256, 320, 384],
    },
    _constant_then_cosine(ema_decay=0.999, grad_clip=0.01),
    "Restormer's settings [R] with patches of multiples of 64, to which HATUNet pads: a choice of this plugin, not yet"
    ' run to its end',
    f'8 GPUs of 8, 4, 2, 1, 1 patches; {EIGHT}',
)
HAT_RECIPE = Recipe(
    {**FLIPS, 'gt_size': 128, 'batch_size_per_gpu': 2},
    {
        'total_iter': 300000,
        'warmup_iter': -1,
        'total_batch_size': 16,
        'ema_decay': 0.999,
        'optim_g': adamw(0.0002, 0.0, [0.9, 0.99]),
        'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': 300000, 'eta_min': 0.000001},
        'pixel_opt': L1,
    },
    'a choice of this plugin, not yet run to its end; HAT was published for super-resolution alone',
    f'8 GPUs of 2 patches; {EIGHT}',
)


def nafnet_recipe(decay: float, flips: bool) -> Recipe:
    """Patches of 256, as published, where SIDD's are not flipped."""
    return Recipe(
        {'use_hflip': flips, 'use_rot': flips, 'gt_size': 256, 'batch_size_per_gpu': 8},
        {
            'total_iter': 400000,
            'warmup_iter': -1,
            'total_batch_size': 64,
            'optim_g': adamw(0.001, decay, [0.9, 0.9]),
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': 400000, 'eta_min': 1e-7},
            'pixel_opt': {'type': 'PSNRLoss', 'loss_weight': 1, 'reduction': 'mean'},
        },
        'official training settings of NAFNet [R]',
        f'published 8 GPUs of 8 patches; {EIGHT}',
        freq=20000,
    )


def swinir_recipe(finetune: bool = False) -> Recipe:
    """Patches of 128, 8 in a step, as published for denoising; half as long and as fast from other weights."""
    total, rate = (800000, 0.0001) if finetune else (1600000, 0.0002)
    source = "SwinIR's settings for denoising [R], Adam's betas as HAT's"
    if finetune:
        source += ', halved for a start from other weights as it does in super-resolution: a choice of this plugin'
    return Recipe(
        {**FLIPS, 'gt_size': 128, 'batch_size_per_gpu': 1},
        {
            'total_iter': total,
            'warmup_iter': -1,
            'total_batch_size': 8,
            'ema_decay': 0.999,
            'optim_g': {'type': 'Adam', 'lr': rate, 'weight_decay': 0, 'betas': [0.9, 0.99]},
            'scheduler': {
                'type': 'MultiStepLR',
                'milestones': [total // 2, total * 3 // 4, total * 7 // 8, total * 15 // 16],
                'gamma': 0.5,
            },
            'pixel_opt': {'type': 'CharbonnierLoss', 'loss_weight': 1.0, 'reduction': 'mean', 'eps': 1e-9},
        },
        source,
        f'published 8 GPUs of 1 patch; {EIGHT}',
        freq=20000,
    )


def light_recipe(total: int, freq: int) -> Recipe:
    """For a laptop: patches of 64, batches of 8."""
    return Recipe(
        {**FLIPS, 'gt_size': 64, 'batch_size_per_gpu': 8, 'dataset_enlarge_ratio': 100},
        {
            'total_iter': total,
            'warmup_iter': 200,
            'ema_decay': 0.995,
            'grad_clip': 1.0,
            'optim_g': adamw(0.001, 0.0001, [0.9, 0.99]),
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': total, 'eta_min': 0.000001},
            'pixel_opt': {'type': 'CharbonnierLoss', 'loss_weight': 1.0, 'reduction': 'mean', 'eps': 0.000001},
        },
        'a choice of this plugin',
        'two cores of a CPU',
        freq=freq,
    )
