"""From archives in their published layouts to metrics: prepared, trained for two iterations, validated, tested.

The archives are small and their pictures pieces of real photographs. Option files are the published ones and those in
options/; changed are the places of the data and what would take a day: sizes of networks, patches and batches, lengths.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from published_options import HAT, published
from scipy.io import savemat
from skimage.metrics import peak_signal_noise_ratio

from hat_plugin.cli import main
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.prepare import layout

OPTIONS = Path(__file__).resolve().parent.parent / 'options'
SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    'HAT': {
        'window_size': 8, 'embed_dim': 12, 'depths': [1], 'num_heads': [2], 'compress_ratio': 4, 'squeeze_factor': 6,
    },
    'SwinIR': {'img_size': 16, 'embed_dim': 12, 'depths': [1], 'num_heads': [2]},
    'HATUNet': {'embed_dim': 8, 'depths': [1, 1], 'num_heads': [1, 2], 'refinement_depth': 1},
    'Restormer': {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]},
    'NAFNet': {'width': 4, 'enc_blk_nums': [1, 1], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1]},
}  # fmt: skip
SMALL_NETWORKS['NAFNetLocal'] = SMALL_NETWORKS['NAFNet']
CROPS = ('--sub-size', '48', '--sub-step', '48', '--min-size', '48', '--workers', '1')


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory, photos: Any) -> Path:
    """A working directory whose datasets/ `basicsr prepare` made of published trees."""
    root = tmp_path_factory.mktemp('miniature')
    random = np.random.RandomState(0)

    def save(path: str, image: np.ndarray) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / path), image)

    for scene, name in (('0001_001_S6_00100_00060_3200_L', 'coffee'), ('0002_001_S6_00100_00020_3200_N', 'rocket')):
        clean = photos.small(name, 96, 96)[..., ::-1]
        noisy = np.clip(clean + random.normal(0, 10, clean.shape), 0, 255).astype(np.uint8)
        for kind, image in (('NOISY', noisy), ('GT', clean)):
            save(f'SIDD_Medium_Srgb/Data/{scene}/{scene[:4]}_{kind}_SRGB_010.PNG', image)
            save(f'rain/{"input" if kind == "NOISY" else "target"}/{name}.png', image)
        save(f'clean/{name}.png', clean)
        save(f'datasets/kodak/{name}.png', clean[:40, :40])
        for benchmark, scale in ((benchmark, scale) for benchmark in layout.BENCHMARKS for scale in (2, 4)):
            save(f'{layout.benchmark_gt(benchmark, scale)}/{name}.png', clean[:48, :64])
            save(f'{layout.benchmark_lr(benchmark, scale)}/{name}.png', imresize(clean[:48, :64], 1 / scale))
        for part in ('train', 'test'):
            for kind, image in (('blur', cv2.GaussianBlur(clean, (9, 9), 2)), ('sharp', clean)):
                save(f'GOPRO_Large/{part}/GOPR0372_{name}/{kind}/000047.png', image)
    blocks = np.stack([[photos.small('coffee', 32, 32, 8 * i, 8 * j) for j in range(2)] for i in range(2)])
    for name, content in (('ValidationGtBlocksSrgb', blocks), ('ValidationNoisyBlocksSrgb', blocks // 2)):
        savemat(root / f'{name}.mat', {name: content})
    commands: list[list[str]] = [
        ['sidd', '.', '--parts', 'train', 'val', '--allow-partial', *CROPS],
        ['gopro', 'GOPRO_Large', '--allow-partial', *CROPS],
        ['folder', 'clean', '--name', 'DF2K', '--scale', '4', *CROPS],
        ['folder', 'clean', '--name', 'DF2K', '--scale', '2', '--no-lmdb', *CROPS],
        ['pairs', '--name', 'Rain13K', '--lq', 'rain/input', '--gt', 'rain/target', *CROPS],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command in commands:
            assert main(['prepare', *command]) == 0
    return root


def shrunk(opt: dict[str, Any]) -> dict[str, Any]:
    """The same options for seconds of a CPU in the place of days of eight GPUs."""
    opt = deepcopy(opt)
    opt['num_gpu'] = 0
    opt['network_g'] |= SMALL_NETWORKS[opt['network_g']['type']]
    for phase, block in opt['datasets'].items():
        clean = 'dataroot_lq' not in block or block['dataroot_lq'] == 'none'
        if phase == 'train':
            block |= {'gt_size': 32 if opt['scale'] == 1 else 48, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
            if 'iters' in block:
                block |= {'mini_batch_sizes': [2, 1], 'iters': [1, 1], 'gt_sizes': [16, 32]}
        if clean:
            block['dataroot_gt'] = 'clean' if phase == 'train' else 'datasets/kodak'
            block['io_backend'] = {'type': 'disk'}
    if 'train' in opt:
        train = opt['train']
        train['total_iter'] = 2
        if 'total_batch_size' in train:
            train['total_batch_size'] = 4
        if 'periods' in train['scheduler']:
            train['scheduler']['periods'] = [1, 1]
        opt['val']['val_freq'] = 1
        opt['path']['pretrain_network_g'] = None
    return opt


def run(command: str, opt: dict[str, Any]) -> None:
    """`basicsr train` or `basicsr test` in this process."""
    file = Path(f'{opt["name"]}.yml')
    file.write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    assert main([command, '-opt', str(file)]) == 0


def trained(opt: dict[str, Any]) -> dict[str, Any]:
    """Train for two iterations; the state."""
    run('train', opt)
    folder = Path('experiments') / opt['name']
    state = torch.load(folder / 'training_states' / '2.state', weights_only=True)
    assert state['iter'] == 2
    return state


PAIRS = {
    'restormer_real': 'SIDD', 'restormer_motion': 'GoPro', 'restormer_rain': 'Rain13K',
    'nafnet_sidd_32': 'SIDD', 'nafnet_gopro_32': 'GoPro',
}  # fmt: skip
HELD_OUT = {'SIDD': 'val', 'GoPro': 'test', 'Rain13K': 'train'}
NOISE = ('restormer_gray', 'restormer_gray_15', 'restormer_colour')


@pytest.mark.parametrize('name', [*PAIRS, *NOISE])
def test_published_files_train_and_validate(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'datasets').symlink_to(data / 'datasets')
    (tmp_path / 'clean').symlink_to(data / 'clean')
    opt = shrunk(published(name))
    if name in PAIRS:
        for phase, block in opt['datasets'].items():
            part = 'train' if phase == 'train' else HELD_OUT[PAIRS[name]]
            block['dataroot_gt'] = layout.pair_gt(PAIRS[name], part)
            block['dataroot_lq'] = layout.pair_lq(PAIRS[name], part)
            block['io_backend'] = {'type': 'lmdb'}
    state = trained(opt)
    (scores,) = state['best_metric_results'].values()
    assert 4 < scores['psnr']['val'] < 60


def test_hats_published_file_passes_the_check_and_trains(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'published.yml').write_text(yaml.safe_dump(HAT, sort_keys=False), encoding='utf-8')
    assert cli('check', '--no-data', '-opt', 'published.yml').code == 0
    (tmp_path / 'datasets').symlink_to(data / 'datasets')
    opt = shrunk(HAT)
    opt['datasets']['train']['meta_info_file'] = layout.training_meta_info('DF2K')
    state = trained(opt)
    assert 4 < state['best_metric_results']['Set5']['psnr']['val'] < 60


OURS = (
    'HAT_SRx4', 'HATUNet_SIDD', 'HAT_SIDD', 'Restormer_SIDD', 'NAFNet_GoPro', 'HATUNet_GoPro',
    'HATUNet_denoise_color_blind', 'HAT_denoise_gray_sigma25', 'HAT_JPEG_q10', 'SwinIR_denoise_color_sigma25',
)  # fmt: skip


@pytest.mark.parametrize('name', OURS)
def test_our_files_train_and_test(name: str, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'datasets').symlink_to(data / 'datasets')
    (tmp_path / 'clean').symlink_to(data / 'clean')
    opt, test = (
        shrunk(yaml.safe_load((OPTIONS / f'{kind}_{name}.yml').read_text(encoding='utf-8')))
        for kind in ('train', 'test')
    )
    trained(opt)
    weights = f'experiments/train_{name}/models/net_g_latest.pth'
    key = 'params_ema' if 'ema_decay' in opt['train'] else 'params'
    test['path'] |= {'pretrain_network_g': weights, 'param_key_g': key}
    run('test', test)
    report = json.loads((tmp_path / 'results' / test['name'] / 'metrics.json').read_text())
    sets = [block['name'] for block in test['datasets'].values()]
    assert list(report['datasets']) == sets
    for name_of_set in sets:
        means = report['datasets'][name_of_set]['mean']
        assert means.keys() == test['val']['metrics'].keys()
        assert 4 < means['psnr'] < 60
    if name.startswith('HATUNet') and 'blind' not in name:  # it begins by giving its input back
        dataset = name.removeprefix('HATUNet_')
        assert means['psnr'] == pytest.approx(unrestored(dataset, HELD_OUT[dataset]), abs=0.5)


def unrestored(dataset: str, part: str) -> float:
    """Mean PSNR of the low-quality pictures themselves, by scikit-image."""
    readers = [LmdbReader(root(dataset, part)) for root in (layout.pair_lq, layout.pair_gt)]
    pairs = [[cv2.imdecode(np.frombuffer(r.read(key), np.uint8), 1) for r in readers] for key in readers[0]]
    return float(np.mean([peak_signal_noise_ratio(clean, low) for low, clean in pairs]))
