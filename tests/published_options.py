"""What HAT's, Restormer's and NAFNet's published option files say, as the dicts that YAML makes of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

DISK, LMDB = {'type': 'disk'}, {'type': 'lmdb'}
LOGGER = {'use_tb_logger': True, 'wandb': {'project': None, 'resume_id': None}}
DIST = {'backend': 'nccl', 'port': 29500}
PATH = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}


def metric(name: str, *, luma: bool = False) -> dict[str, Any]:
    return {'type': f'calculate_{name}', 'crop_border': 0, 'test_y_channel': luma}


def restormer(
    name: str,
    train: dict[str, Any],
    val: dict[str, Any],
    *,
    norm: str,
    channels: int = 3,
    mixup: bool = False,
    use_image: bool = False,
    luma: bool = False,
) -> dict[str, Any]:
    """A file of Restormer; they differ in what the arguments say, and in nothing else."""
    return {
        'name': f'{name}_Restormer',
        'model_type': 'ImageCleanModel',
        'scale': 1,
        'num_gpu': 8,
        'manual_seed': 100,
        'datasets': {
            'train': {
                'name': 'TrainSet',
                **train,
                'geometric_augs': True,
                'filename_tmpl': '{}',
                'io_backend': DISK,
                'use_shuffle': True,
                'num_worker_per_gpu': 8,
                'batch_size_per_gpu': 8,
                'mini_batch_sizes': [8, 5, 4, 2, 1, 1],
                'iters': [92000, 64000, 48000, 36000, 36000, 24000],
                'gt_size': 384,
                'gt_sizes': [128, 160, 192, 256, 320, 384],
                'dataset_enlarge_ratio': 1,
                'prefetch_mode': None,
            },
            'val': {'name': 'ValSet', **val, 'io_backend': DISK},
        },
        'network_g': {
            'type': 'Restormer',
            'inp_channels': channels,
            'out_channels': channels,
            'dim': 48,
            'num_blocks': [4, 6, 6, 8],
            'num_refinement_blocks': 4,
            'heads': [1, 2, 4, 8],
            'ffn_expansion_factor': 2.66,
            'bias': False,
            'LayerNorm_type': norm,
            'dual_pixel_task': False,
        },
        'path': PATH,
        'train': {
            'total_iter': 300000,
            'warmup_iter': -1,
            'use_grad_clip': True,
            'scheduler': {
                'type': 'CosineAnnealingRestartCyclicLR',
                'periods': [92000, 208000],
                'restart_weights': [1, 1],
                'eta_mins': [0.0003, 0.000001],
            },
            'mixing_augs': {'mixup': mixup, 'mixup_beta': 1.2, 'use_identity': True},
            'optim_g': {'type': 'AdamW', 'lr': 3e-4, 'weight_decay': 1e-4, 'betas': [0.9, 0.999]},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1, 'reduction': 'mean'},
        },
        'val': {
            'window_size': 8,
            'val_freq': 4e3,
            'save_img': False,
            'rgb2bgr': True,
            'use_image': use_image,
            'max_minibatch': 8,
            'metrics': {'psnr': metric('psnr', luma=luma)},
        },
        'logger': {'print_freq': 1000, 'save_checkpoint_freq': 4e3, **LOGGER},
        'dist_params': DIST,
    }


def _pairs(root: str, lq: str = 'input_crops', gt: str = 'target_crops') -> dict[str, Any]:
    return {'type': 'Dataset_PairedImage', 'dataroot_gt': f'{root}/{gt}', 'dataroot_lq': f'{root}/{lq}'}


def _noise(root: str, channels: int, **level: Any) -> dict[str, Any]:
    place = {'dataroot_gt': f'./Denoising/Datasets/{root}', 'dataroot_lq': 'none'}
    return {'type': 'Dataset_GaussianDenoising', **level, 'in_ch': channels, **place}


def _gaussian(kind: str, channels: int, test: str, level: dict[str, Any], sigma: int) -> dict[str, Any]:
    train, val = _noise('train/DFWB', channels, **level), _noise(f'test/{test}', channels, sigma_test=sigma)
    return restormer(f'Gaussian{kind}Denoising', train, val, norm='BiasFree', channels=channels, mixup=True)


def nafnet(task: str, width: int, data: dict[str, Any]) -> dict[str, Any]:
    """A file of NAFNet; `data` is what SIDD's and GoPro's differ in."""
    total = {32: 200000, 64: 400000}[width]
    return {
        'name': f'NAFNet-{task}-width{width}',
        'model_type': 'ImageRestorationModel',
        'scale': 1,
        'num_gpu': 8,
        'manual_seed': 10,
        'datasets': {
            'train': {
                'type': 'PairedImageDataset',
                **data['train'],
                'filename_tmpl': '{}',
                'io_backend': LMDB,
                'gt_size': 256,
                'use_shuffle': True,
                'num_worker_per_gpu': width // 8,
                'batch_size_per_gpu': width // 8,
                'dataset_enlarge_ratio': 1,
                'prefetch_mode': None,
            },
            'val': {'type': 'PairedImageDataset', **data['val'], 'io_backend': LMDB},
        },
        'network_g': {'width': width, **data['network']},
        'path': PATH,
        'train': {
            'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': data['decay'][width], 'betas': [0.9, 0.9]},
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': total, 'eta_min': 1e-7},
            'total_iter': total,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'PSNRLoss', 'loss_weight': 1, 'reduction': 'mean'},
        },
        'val': {
            'val_freq': 2e4,
            'save_img': False,
            **data['scoring'],
            'metrics': {'psnr': metric('psnr'), 'ssim': metric('ssim')},
        },
        'logger': {'print_freq': 200, 'save_checkpoint_freq': 5e3, **LOGGER},
        'dist_params': DIST,
    }


def nafnet_test(training: dict[str, Any], phase: str) -> dict[str, Any]:
    """The test file beside a training file of NAFNet."""
    kept = ('model_type', 'scale', 'manual_seed', 'network_g', 'dist_params')
    val = {key: value for key, value in training['val'].items() if key != 'val_freq'}
    return {
        **{key: training[key] for key in kept},
        'name': f'{training["name"]}-test',
        'num_gpu': 1,
        'datasets': {phase: training['datasets']['val']},
        'path': {**PATH, 'pretrain_network_g': f'experiments/pretrained_models/{training["name"]}.pth'},
        'val': {**val, 'grids': False},
    }


SIDD = {
    'train': {
        'name': 'SIDD',
        'dataroot_gt': './datasets/SIDD/train/gt_crops.lmdb',
        'dataroot_lq': './datasets/SIDD/train/input_crops.lmdb',
        'use_flip': False,
        'use_rot': False,
    },
    'val': {
        'name': 'SIDD_val',
        'dataroot_gt': './datasets/SIDD/val/gt_crops.lmdb',
        'dataroot_lq': './datasets/SIDD/val/input_crops.lmdb',
    },
    'network': {
        'type': 'NAFNet', 'enc_blk_nums': [2, 2, 4, 8], 'middle_blk_num': 12, 'dec_blk_nums': [2, 2, 2, 2],
    },
    'decay': {32: 0.0, 64: 0.0},
    'scoring': {'use_image': False},
}  # fmt: skip
GOPRO = {
    'train': {
        'name': 'gopro-train',
        'dataroot_gt': './datasets/GoPro/train/sharp_crops.lmdb',
        'dataroot_lq': './datasets/GoPro/train/blur_crops.lmdb',
        'use_flip': True,
        'use_rot': True,
    },
    'val': {
        'name': 'gopro-test',
        'dataroot_gt': './datasets/GoPro/test/target.lmdb',
        'dataroot_lq': './datasets/GoPro/test/input.lmdb',
    },
    'network': {
        'type': 'NAFNetLocal', 'enc_blk_nums': [1, 1, 1, 28], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1, 1, 1],
    },
    'decay': {32: 0.0, 64: 1e-3},
    'scoring': {},
}  # fmt: skip

RANDOM = {'sigma_type': 'random', 'sigma_range': [0, 50]}
TRAINING: dict[str, dict[str, Any]] = {
    'restormer_gray': _gaussian('Gray', 1, 'BSD68', RANDOM, 25),
    'restormer_gray_15': _gaussian('Gray', 1, 'BSD68', {'sigma_type': 'constant', 'sigma_range': 15}, 15),
    'restormer_colour': _gaussian('Color', 3, 'CBSD68', RANDOM, 25),
    'restormer_real': restormer(
        'RealDenoising',
        _pairs('./Denoising/Datasets/train/SIDD'),
        _pairs('./Denoising/Datasets/val/SIDD'),
        norm='BiasFree',
        mixup=True,
    ),
    'restormer_motion': restormer(
        'Deblurring',
        _pairs('./Motion_Deblurring/Datasets/train/GoPro'),
        _pairs('./Motion_Deblurring/Datasets/val/GoPro'),
        norm='WithBias',
        use_image=True,
    ),
    'restormer_rain': restormer(
        'Deraining',
        _pairs('./Deraining/Datasets/train/Rain13K', 'input', 'target'),
        _pairs('./Deraining/Datasets/test/Rain100L', 'input', 'target'),
        norm='WithBias',
        use_image=True,
        luma=True,
    ),
    'restormer_defocus': restormer(
        'DefocusDeblur_Single_8bit',
        _pairs('./Defocus_Deblurring/Datasets/train/DPDD', 'inputC_crops'),
        _pairs('./Defocus_Deblurring/Datasets/val/DPDD', 'inputC_crops'),
        norm='WithBias',
    ),
    'nafnet_sidd_32': nafnet('SIDD', 32, SIDD),
    'nafnet_sidd_64': nafnet('SIDD', 64, SIDD),
    'nafnet_gopro_32': nafnet('GoPro', 32, GOPRO),
    'nafnet_gopro_64': nafnet('GoPro', 64, GOPRO),
}
TESTING = {
    'nafnet_sidd_32': nafnet_test(TRAINING['nafnet_sidd_32'], 'val'),
    'nafnet_sidd_64': nafnet_test(TRAINING['nafnet_sidd_64'], 'val'),
    'nafnet_gopro_32': nafnet_test(TRAINING['nafnet_gopro_32'], 'test'),
    'nafnet_gopro_64': nafnet_test(TRAINING['nafnet_gopro_64'], 'test'),
}

HAT_PSNR = {'crop_border': 2, 'test_y_channel': True, 'better': 'higher'}
HAT: dict[str, Any] = {
    'name': 'train_HAT_SRx2_from_scratch',
    'model_type': 'HATModel',
    'scale': 2,
    'num_gpu': 'auto',
    'manual_seed': 0,
    'datasets': {
        'train': {
            'name': 'DF2K',
            'type': 'PairedImageDataset',
            'dataroot_gt': 'datasets/DF2K/DF2K_HR_sub',
            'dataroot_lq': 'datasets/DF2K/DF2K_bicx2_sub',
            'meta_info_file': 'hat/data/meta_info/meta_info_DF2Ksub_GT.txt',
            'io_backend': DISK,
            'gt_size': 128,
            'use_hflip': True,
            'use_rot': True,
            'use_shuffle': True,
            'num_worker_per_gpu': 6,
            'batch_size_per_gpu': 4,
            'dataset_enlarge_ratio': 1,
            'prefetch_mode': None,
        },
        'val_1': {
            'name': 'Set5',
            'type': 'PairedImageDataset',
            'dataroot_gt': './datasets/Set5/GTmod2',
            'dataroot_lq': './datasets/Set5/LRbicx2',
            'io_backend': DISK,
        },
    },
    'network_g': {
        'type': 'HAT', 'upscale': 2, 'in_chans': 3, 'img_size': 64, 'window_size': 16, 'compress_ratio': 3,
        'squeeze_factor': 30, 'conv_scale': 0.01, 'overlap_ratio': 0.5, 'img_range': 1.0, 'depths': [6] * 6,
        'embed_dim': 180, 'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv',
    },
    'path': PATH,
    'train': {
        'ema_decay': 0.999,
        'optim_g': {'type': 'Adam', 'lr': 2e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [250000, 400000, 450000, 475000], 'gamma': 0.5},
        'total_iter': 500000,
        'warmup_iter': -1,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {
        'val_freq': 5e3,
        'save_img': False,
        'pbar': False,
        'metrics': {
            'psnr': {'type': 'calculate_psnr', **HAT_PSNR},
            'ssim': {'type': 'calculate_ssim', **HAT_PSNR},
        },
    },
    'logger': {'print_freq': 100, 'save_checkpoint_freq': 5e3, **LOGGER},
    'dist_params': DIST,
}  # fmt: skip


def published(name: str) -> dict[str, Any]:
    """A copy to change."""
    return deepcopy(TRAINING[name])
