"""What the parts of HATUNet contribute, at one small training budget on real photographs.

    python -m benchmarks.ablation --train datasets/Photos/Photos_HR.lmdb --test datasets/McMaster --seeds 0 1

Each variant differs from the first in one option. All are trained by `basicsr train` on colour Gaussian noise of sigma
25, from the same patches with the same noise, and measured by `basicsr test`; a run that is broken off goes on where it
was, and one that is there is not repeated. The table, with the differences seed by seed, goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.cli import main as basicsr
from hat_plugin.compare import machine
from hat_plugin.compare.text import markdown_table
from hat_plugin.engine.macs import count_macs
from hat_plugin.errors import HatPluginError

NETWORK: dict[str, Any] = {
    'type': 'HATUNet', 'embed_dim': 16, 'depths': [2, 2], 'num_heads': [1, 2], 'refinement_depth': 1, 'window_size': 8,
    'fusion': 'add',
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    'baseline': {},
    'fusion: concat': {'fusion': 'concat'},
    'fusion: gate': {'fusion': 'gate'},
    'arrangement: sequential': {'arrangement': 'sequential'},
    'no local enhancement': {'local_enhancement': False},
    'no shift': {'shift': False},
    'window 4': {'window_size': 4},
    'window 16': {'window_size': 16},
    'feed-forward: gated': {'feed_forward': 'gated'},
    'overlapping attention': {'overlap_ratio': 0.5},
    'channel attention': {'squeeze_factor': 8},
}
SIDE = 64  # of a patch


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, then print the table."""
    args = arguments().parse_args(argv)
    names = list(args.variants)
    if names[0] != 'baseline':
        raise HatPluginError(
            f'--variants {names[0]!r} ...: the first must be baseline, to which the others are compared'
        )
    scores: dict[str, list[float]] = {name: [] for name in names}
    for seed in args.seeds:
        for name in names:
            scores[name].append(trained(name, seed, args))
    print('\n'.join(machine.examine(torch.device('cpu')).lines()))
    print(table(scores, step_times(names, args.rounds)))


def arguments() -> argparse.ArgumentParser:
    """The command line; runs are kept in experiments/ and results/ of the working directory."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.ablation', description=__doc__)
    add = parser.add_argument
    add('--train', required=True, help='clean photographs: a folder or an LMDB')
    add('--test', required=True, help='clean photographs to measure on: a folder or an LMDB')
    add('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), help='which; the first is the baseline')
    add('--seeds', nargs='+', type=int, default=[0], help='of the trainings')
    add('--iterations', type=int, default=600, help='of a training, batches of 8 patches')
    add('--rounds', type=int, default=5, help='of steps that are timed in turns')
    return parser


def options(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The option file of a variant."""
    noisy = {'type': 'GaussianDenoisingDataset', 'sigma': 25}
    train, test = (
        {**noisy, 'dataroot_gt': root, 'io_backend': {'type': 'lmdb' if root.endswith('.lmdb') else 'disk'}}
        for root in (args.train, args.test)
    )
    loading = {'gt_size': SIDE, 'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': 8, 'num_worker_per_gpu': 0}
    metric = {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'higher'}
    return {
        'name': f'ablation_{name.replace(": ", "_").replace(" ", "_")}_{args.iterations}_seed{seed}',
        'model_type': 'RestorationModel',
        'scale': 1,
        'num_gpu': 'auto',
        'manual_seed': seed,
        'datasets': {'train': {'name': 'train', **train, **loading, 'dataset_enlarge_ratio': 100}},
        'network_g': {**NETWORK, **VARIANTS[name]},
        'path': {},
        'train': {
            'total_iter': args.iterations,
            'warmup_iter': min(100, args.iterations // 4),
            'ema_decay': 0.99,
            'grad_clip': 1.0,
            'optim_g': {'type': 'AdamW', 'lr': 0.001, 'weight_decay': 0.0001, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': args.iterations, 'eta_min': 0.000001},
            'pixel_opt': {'type': 'CharbonnierLoss', 'loss_weight': 1.0, 'eps': 0.000001},
        },
        'logger': {'print_freq': 100, 'save_checkpoint_freq': 200, 'use_tb_logger': False},
        'test': {
            'datasets': {'test': {'name': 'test', **test}},
            'val': {'use_image': False, 'metrics': {'psnr': metric}},
        },
    }


def trained(name: str, seed: int, args: argparse.Namespace) -> float:
    """PSNR of a variant, which is trained and measured if it was not yet.

    Raises:
        HatPluginError: the training or the test failed; it has said why. Or an earlier run had other options.
    """
    opt = options(name, seed, args)
    common = {key: opt[key] for key in ('name', 'model_type', 'scale', 'num_gpu', 'network_g')}
    weights = Path('experiments') / opt['name'] / 'models' / 'net_g_latest.pth'
    start = {'path': {'pretrain_network_g': str(weights), 'param_key_g': 'params_ema'}}
    files = [written('test', {**common, **opt.pop('test'), **start}), written('train', opt)]
    found = Path('results') / opt['name'] / 'metrics.json'
    if not found.is_file():
        run('train', files[1], '--auto_resume')
        run('test', files[0])
    return float(json.loads(found.read_text(encoding='utf-8'))['datasets']['test']['mean']['psnr'])


def written(command: str, opt: dict[str, Any]) -> Path:
    """The option file of a run.

    Raises:
        HatPluginError: it is there and says otherwise, so that the results beside it are of other data or sizes.
    """
    file, text = Path(f'{opt["name"]}_{command}.yml'), yaml.safe_dump(opt, sort_keys=False)
    if file.exists() and file.read_text(encoding='utf-8') != text:
        raise HatPluginError(f'{file.absolute()}: an earlier ablation had other options; work in another folder')
    file.write_text(text, encoding='utf-8')
    return file


def run(command: str, file: Path, *more: str) -> None:
    """`basicsr train` or `basicsr test` with an option file.

    Raises:
        HatPluginError: it failed, or was broken off.
    """
    code = basicsr([command, '-opt', str(file), *more])
    if code:
        raise HatPluginError(f'basicsr {command} -opt {file} ended with {code}')


def step_times(names: list[str], rounds: int) -> dict[str, float]:
    """Processor time of a forward and a backward pass of 8 patches: the median of rounds in turns, in seconds."""
    networks = {name: network(name) for name in names}
    patches = torch.rand(8, 3, SIDE, SIDE)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, net in networks.items():
            begin = time.process_time()
            net(patches).square().mean().backward()
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def network(name: str) -> HATUNet:
    """A variant."""
    return HATUNet(**{key: value for key, value in {**NETWORK, **VARIANTS[name]}.items() if key != 'type'})


def table(scores: dict[str, list[float]], times: dict[str, float]) -> str:
    """A row for each variant: size, PSNR, the difference to the baseline seed by seed, time."""
    base = scores['baseline']
    rows = []
    for name, values in scores.items():
        net = network(name)
        differences = [value - other for value, other in zip(values, base, strict=True)]
        told = ' '.join(f'{value:+.2f}' for value in differences) if name != 'baseline' else ''
        rows.append(
            [
                name,
                f'{sum(p.numel() for p in net.parameters()):,}',
                f'{count_macs(net, (1, 3, 256, 256)).total / 1e9:.2f}',
                f'{statistics.fmean(values):.2f}',
                told,
                f'{times[name] / times["baseline"]:.2f}',
            ]
        )
    columns = ['variant', 'parameters', 'G MACs, 256x256', 'PSNR, dB', 'to the baseline, by seed', 'time of a step']
    return markdown_table(columns, rows)


if __name__ == '__main__':
    try:
        main()
    except HatPluginError as error:
        sys.exit(f'ablation: {error}')
