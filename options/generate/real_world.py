"""The option files of Real-HAT: super-resolution of photographs whose degradation nobody knows."""

from __future__ import annotations

from typing import Any

from yaml_text import option_file

from hat_plugin.prepare import layout

DATA = 'DF2K_OST'
PREPARE = f'basicsr prepare folder PICTURES --name {DATA} --scale 1 (DIV2K, Flickr2K and OutdoorScene in one folder)'
SOURCE = 'official training settings of Real-HAT [R]'
MARKS = "[R] read in the project's files; nothing here was measured by this plugin"
HARDWARE = 'published 8 GPUs of 4 patches'
DEGRADATION: dict[str, Any] = {
    'resize_prob': [0.2, 0.7, 0.1],
    'resize_range': [0.15, 1.5],
    'gaussian_noise_prob': 0.5,
    'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3],
    'gray_noise_prob': 0.4,
    'jpeg_range': [30, 95],
    'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3],
    'resize_range2': [0.3, 1.2],
    'gaussian_noise_prob2': 0.5,
    'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4,
    'jpeg_range2': [30, 95],
    'gt_size': 256,
    'queue_size': 180,
}
KERNELS: dict[str, Any] = {
    'blur_kernel_size': 21,
    'kernel_list': ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso'],
    'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4],
    'betap_range': [1, 2],
}
SECOND = {f'{key}2': value for key, value in KERNELS.items()} | {'blur_sigma2': [0.2, 1.5]}
NETWORK: dict[str, Any] = {
    'type': 'HAT', 'upscale': 4, 'in_chans': 3, 'window_size': 16, 'compress_ratio': 3, 'squeeze_factor': 30,
    'conv_scale': 0.01, 'overlap_ratio': 0.5, 'img_range': 1.0, 'depths': [6] * 6, 'embed_dim': 180,
    'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv',
}  # fmt: skip
DISCRIMINATOR = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
ADAM = {'type': 'Adam', 'lr': 0.0001, 'weight_decay': 0, 'betas': [0.9, 0.99]}
L1 = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
PERCEPTUAL = {
    'type': 'PerceptualLoss',
    'layer_weights': {'conv1_2': 0.1, 'conv2_2': 0.1, 'conv3_4': 1, 'conv4_4': 1, 'conv5_4': 1},
    'vgg_type': 'vgg19',
    'use_input_norm': True,
    'perceptual_weight': 1.0,
    'style_weight': 0,
    'range_norm': False,
    'criterion': 'l1',
}
GAN = {'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0, 'fake_label_val': 0.0, 'loss_weight': 0.1}


def top(name: str, model: str) -> dict[str, Any]:
    """What stands above the sections."""
    return {'name': name, 'model_type': model, 'scale': 4, 'num_gpu': 'auto', 'manual_seed': 0}


def training(kind: str) -> tuple[str, str]:
    """Name and text of a training file: 'mse', or 'gan' from its weights."""
    name, gan = f'train_RealHAT_SRx4_{kind}', kind == 'gan'
    mse = 'train_RealHAT_SRx4_mse'
    switches = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False} if gan else {'gt_usm': True}
    total = 400000 if gan else 1000000
    train: dict[str, Any] = {
        'total_iter': total,
        'warmup_iter': -1,
        'ema_decay': 0.999,
        'optim_g': ADAM,
        **({'optim_d': ADAM} if gan else {}),
        'scheduler': {'type': 'MultiStepLR', 'milestones': [total], 'gamma': 0.5},
        'pixel_opt': L1,
        **({'perceptual_opt': PERCEPTUAL, 'gan_opt': GAN, 'net_d_iters': 1, 'net_d_init_iters': 0} if gan else {}),
    }
    start: dict[str, Any] = {'pretrain_network_g': None}
    if gan:
        start = {'pretrain_network_g': f'experiments/{mse}/models/net_g_latest.pth', 'param_key_g': 'params_ema'}
    what = 'the GAN, from the weights of the first step' if gan else 'the first step, with L1 alone'
    first = f'\nFirst: options/{mse}.yml, whose last EMA weights this run starts from.' if gan else ''
    vgg = (
        '\nVGG19: torchvision fetches its weights; where it cannot, the error says which file belongs where.'
        if gan
        else ''
    )
    header = f"""\
Real-HAT x4, {what}: photographs of unknown degradation.

  basicsr train -opt options/{name}.yml --auto_resume
  torchrun --nproc_per_node=8 -m hat_plugin.train -opt options/{name}.yml --launcher pytorch --auto_resume

Data: {PREPARE}; then basicsr check -opt ...{first}{vgg}
Hardware: {HARDWARE} (20.8 M parameters, 103.9 G MACs at 64x64); basicsr check --no-data prints the memory it takes.
Expected: no figure; the papers show pictures. Look at some of your own with options/test_RealHAT_SRx4_{kind}.yml.
Source: {SOURCE}
  {MARKS}"""
    data = {
        'name': DATA,
        'type': 'RealESRGANDataset',
        'dataroot_gt': layout.training_hr(DATA),
        'io_backend': {'type': 'lmdb'},
        **KERNELS,
        **SECOND,
        'final_sinc_prob': 0.8,
        'gt_size': 256,
        'use_hflip': True,
        'use_rot': False,
        'use_shuffle': True,
        'num_worker_per_gpu': 6,
        'batch_size_per_gpu': 4,
        'dataset_enlarge_ratio': 1,
    }
    opt: dict[str, Any] = {
        **top(name, 'RealHATGANModel' if gan else 'RealHATMSEModel'),
        **switches,
        **DEGRADATION,
        'datasets': {'train': data},
        'network_g': NETWORK,
        **({'network_d': DISCRIMINATOR} if gan else {}),
        'path': {**start, 'strict_load_g': True, 'resume_state': None},
        'train': train,
        'logger': {'print_freq': 100, 'save_checkpoint_freq': 5000, 'keep_checkpoints': 20, 'use_tb_logger': True},
    }
    return name, option_file(header, opt)


def testing(kind: str) -> tuple[str, str]:
    """Name and text of a test file, on pictures without ground truth."""
    name = f'test_RealHAT_SRx4_{kind}'
    header = f"""\
Real-HAT x4 on a folder of photographs without ground truth.

  basicsr test -opt options/{name}.yml --force_yml datasets:test_1:dataroot_lq=PICTURES

Data: any folder of pictures; datasets/folder is only the name that stands below.
Weights: of options/train_RealHAT_SRx4_{kind}.yml.
Hardware: one GPU, or a CPU with patience; large pictures are restored in tiles.
Expected: no figure, there is no ground truth to measure against.
Source: {SOURCE}"""
    place = {'dataroot_lq': 'datasets/folder', 'io_backend': {'type': 'disk'}}
    opt = {
        **top(name, 'HATModel'),
        'tile': {'tile_size': 512, 'tile_pad': 32},
        'datasets': {'test_1': {'name': 'folder', 'type': 'FolderDataset', **place}},
        'network_g': NETWORK,
        'path': {
            'pretrain_network_g': f'experiments/train_RealHAT_SRx4_{kind}/models/net_g_latest.pth',
            'param_key_g': 'params_ema',
            'strict_load_g': True,
        },
        'val': {'save_img': True, 'suffix': None},
    }
    return name, option_file(header, opt)


def files() -> dict[str, str]:
    """Every file: its run's name -> text."""
    return dict(make(kind) for kind in ('mse', 'gan') for make in (training, testing))
