"""The option files of classical super-resolution."""

from __future__ import annotations

from collections.abc import Sequence

import published
from super_resolution_recipes import (
    BATCH,
    FINETUNE,
    HAT,
    HAT_L,
    HAT_LIGHT,
    HAT_S,
    IMAGENET,
    MARKS,
    PRETRAINED,
    SETS,
    SWINIR,
    Network,
    Recipe,
    df2k_recipe,
    figure,
    light_recipe,
    swinir_recipe,
)
from yaml_text import lines

from hat_plugin.prepare import layout


def training(name: str, network: Network, scale: int, recipe: Recipe) -> str:
    """A training file; `name` is also the run's."""
    freq = 5000 if recipe.data == 'DF2K' else 10000
    return f"""\
{training_header(name, network, scale, recipe)}

name: {name}
model_type: HATModel
scale: {scale}
num_gpu: auto
manual_seed: 0

datasets:
{training_data(recipe.data, scale, recipe.batch)}

{benchmarks(('Set5', 'Set14'), scale, 'val')}

{network_lines(network, scale)}

{start_lines(recipe)}

{train_lines(recipe)}

val:
  val_freq: {freq}
  save_img: false

{metrics(scale)}

logger:
  print_freq: 100
  save_checkpoint_freq: {freq}
  keep_checkpoints: 20
  use_tb_logger: true
"""


def training_header(name: str, network: Network, scale: int, recipe: Recipe) -> str:
    """Purpose, command, data, hardware, figure and source."""
    prepare = 'df2k' if recipe.data == 'DF2K' else 'imagenet'
    first = f'\n# First: options/{recipe.start}.yml, whose last EMA weights this run starts from.' * bool(recipe.start)
    return f"""\
# {recipe.purpose}
#
#   basicsr train -opt options/{name}.yml --auto_resume
#   torchrun --nproc_per_node=8 -m hat_plugin.train -opt options/{name}.yml --launcher pytorch --auto_resume
#
# Data: basicsr prepare {prepare}, basicsr prepare benchmark (datasets/README.md); then basicsr check -opt ...{first}
# Hardware: {recipe.hardware}
#   ({network.millions}); basicsr check --no-data prints the memory it takes.
# Expected PSNR (Y, border {scale}): {recipe.expected}
# Source: {recipe.source}
#   {MARKS}"""


def network_lines(network: Network, scale: int) -> str:
    """``network_g``."""
    return f"""\
network_g:
  type: {'SwinIR' if network is SWINIR else 'HAT'}
  upscale: {scale}
{network.options}"""


def start_lines(recipe: Recipe) -> str:
    """``path`` of a training."""
    start = f'experiments/{recipe.start}/models/net_g_latest.pth' if recipe.start else '~'
    key = '\n  param_key_g: params_ema' * bool(recipe.start)
    why = '' if recipe.strict else "  # the upsampler's layers differ between the scales"
    return f"""\
path:
  pretrain_network_g: {start}{key}
  strict_load_g: {str(recipe.strict).lower()}{why}
  resume_state: ~"""


def train_lines(recipe: Recipe) -> str:
    """``train``."""
    amp = f'\n  amp: {recipe.amp}' * bool(recipe.amp)
    return f"""\
train:
  total_iter: {recipe.total_iter}
  warmup_iter: -1
  total_batch_size: {BATCH}  # over all GPUs, accumulated where they are fewer
  ema_decay: 0.999{amp}

  optim_g:
    type: Adam
    lr: {recipe.rate}
    weight_decay: 0
    betas: [0.9, 0.99]

  scheduler:
    type: MultiStepLR
    milestones: [{', '.join(str(step) for step in recipe.milestones)}]
    gamma: 0.5

  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean"""


def training_data(data: str, scale: int, batch: int) -> str:
    """``datasets: train:``."""
    if data == 'ImageNet':
        head = f"""\
    type: ImageNetPairedDataset
    dataroot_gt: {layout.IMAGENET_TRAIN}
    dataroot_lq: {layout.IMAGENET_TRAIN}  # the same folder: inputs are made on the fly
    meta_info_file: {layout.IMAGENET_MAP}
    io_backend:
      type: disk"""
    else:
        head = f"""\
    type: PairedCropDataset
    dataroot_gt: {layout.training_hr('DF2K')}
    dataroot_lq: {layout.training_lr('DF2K', scale)}
    io_backend:
      type: lmdb"""
    return f"""\
  train:
    name: {data}
{head}

    gt_size: {64 * scale}
    use_hflip: true
    use_rot: true

    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: {batch}
    dataset_enlarge_ratio: 1"""


def benchmarks(names: Sequence[str], scale: int, phase: str) -> str:
    """Validation or test sets."""
    blocks = [
        f"""\
  {phase}_{number}:
    name: {name}
    type: PairedCropDataset
    dataroot_gt: {layout.benchmark_gt(name, scale)}
    dataroot_lq: {layout.benchmark_lr(name, scale)}
    io_backend:
      type: disk"""
        for number, name in enumerate(names, 1)
    ]
    return '\n\n'.join(blocks)


def metrics(scale: int) -> str:
    """``val: metrics:``, the protocol of classical super-resolution."""
    return f"""\
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: {scale}
      test_y_channel: true
      better: higher
    ssim:
      type: calculate_ssim
      crop_border: {scale}
      test_y_channel: true
      better: higher"""


def testing(name: str, network: Network, scale: int, weights: str, expected: str, key: str = 'params_ema') -> str:
    """A test file."""
    known = published.section(network.label, expected, SETS, network.ssim.get(scale, ''))
    return f"""\
# {network.label} x{scale} on {', '.join(SETS)}.
#
#   basicsr test -opt options/{name}.yml
#   basicsr test -opt options/{name}.yml --force_yml path:pretrain_network_g=experiments/RUN/models/net_g_latest.pth
#
# Data: basicsr prepare benchmark (datasets/README.md).
# Hardware: one GPU, or a CPU with patience ({network.millions} for a 64x64 input at x4); tiles where memory is short.
# Expected: what stands under published.

name: {name}
model_type: HATModel
scale: {scale}
num_gpu: auto
manual_seed: 0

datasets:
{benchmarks(SETS, scale, 'test')}

{network_lines(network, scale)}

path:
  pretrain_network_g: experiments/pretrained_models/{weights}
  param_key_g: {key}
  strict_load_g: true

val:
  save_img: true
  suffix: ~

{metrics(scale)}

{chr(10).join(lines('published', known, 0))}
"""


def training_files() -> dict[str, str]:
    """All training files by name."""
    files: dict[str, str] = {}
    for network in (HAT, HAT_S, HAT_L):
        for scale in (2, 3, 4):
            name = f'train_{network.label}_SRx{scale}'
            files[name] = training(name, network, scale, df2k_recipe(network, scale))
    for network in (HAT, HAT_L):
        for scale in (2, 3, 4):
            name = f'train_{network.label}_SRx{scale}_ImageNet'
            label = f'{network.label} x{scale}'
            recipe = Recipe(f'{label}, pre-training on ImageNet.', *IMAGENET, data='ImageNet')
            files[name] = training(name, network, scale, recipe)
            purpose = f'{label}, fine-tuning on DF2K after ImageNet.'
            recipe = Recipe(purpose, *FINETUNE, start=name, expected=PRETRAINED[network.label, scale])
            files[f'{name}_finetune'] = training(f'{name}_finetune', network, scale, recipe)
    files['train_SwinIR_SRx4'] = training('train_SwinIR_SRx4', SWINIR, 4, swinir_recipe())
    files['train_HAT-light_SRx4'] = training('train_HAT-light_SRx4', HAT_LIGHT, 4, light_recipe())
    return files


def test_files() -> dict[str, str]:
    """All test files by name."""
    files: dict[str, str] = {}
    for network in (HAT, HAT_S, SWINIR):
        for scale in (2, 3, 4):
            name = f'test_{network.label}_SRx{scale}'
            weights, key = f'{network.label}_SRx{scale}.pth', 'params_ema'
            if network is SWINIR:
                weights, key = f'001_classicalSR_DF2K_s64w8_SwinIR-M_x{scale}.pth', 'params'
            files[name] = testing(name, network, scale, weights, figure(network, scale), key)
    for scale in (2, 3, 4):
        name = f'test_HAT-L_SRx{scale}'
        weights = f'HAT-L_SRx{scale}_ImageNet-pretrain.pth'
        files[name] = testing(name, HAT_L, scale, weights, PRETRAINED['HAT-L', scale])
    return files


def files() -> dict[str, str]:
    """Every file: its run's name -> text."""
    return {**training_files(), **test_files()}
