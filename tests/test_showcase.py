"""The showcase: figures that scikit-image confirms, a picture, a curve; and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is of the checkout

from benchmarks import curves, showcase
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.errors import HatPluginError

SIZES: dict[str, Any] = {'embed_dim': 8, 'depths': [1, 1], 'num_heads': [1, 1], 'refinement_depth': 0}
LOG = """\
INFO: [run..][epoch:  0, iter:     100, lr:(1.000e-03,)] l_pix: 2.0000e-02 grad_norm: 1
\t # psnr: 30.5000\tBest: 30.5000 @ 100 iter
INFO: [run..][epoch:  0, iter:   1,200, lr:(1.000e-03,)] l_pix: 1.0000e-02 grad_norm: 1
"""


@pytest.fixture
def file(tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test file of an untrained HATUNet, which hands pictures through, on two noisy photographs."""
    monkeypatch.chdir(tmp_path)
    for folder in ('gt', 'lq'):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(('coffee', 'rocket')):
        clean = photos.small(name, 100, 130)[..., ::-1]
        noise = np.random.RandomState(number).normal(0, 20, clean.shape)
        cv2.imwrite(f'gt/{name}.png', clean)
        cv2.imwrite(f'lq/{name}.png', np.clip(clean + noise, 0, 255).round().astype(np.uint8))
    for name in ('latest', '100'):
        torch.save({'params': HATUNet(**SIZES).state_dict()}, f'net_g_{name}.pth')
    pairs = {'name': 'photos', 'type': 'PairedCropDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'}
    opt = {
        'name': 'untrained',
        'model_type': 'RestorationModel',
        'scale': 1,
        'num_gpu': 0,
        'datasets': {'test_1': {**pairs, 'io_backend': {'type': 'disk'}}},
        'network_g': {'type': 'HATUNet', **SIZES},
        'path': {'pretrain_network_g': 'net_g_latest.pth'},
        'val': {'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}},
    }
    (tmp_path / 'test.yml').write_text(yaml.safe_dump(opt), encoding='utf-8')
    return tmp_path / 'test.yml'


def test_table_picture_and_curve(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path('run.log').write_text(LOG, encoding='utf-8')
    command = ['-opt', str(file), '-o', 'out.png', '--strengths', '1', '15', '--log', 'run.log', '--checkpoints', '100']
    showcase.main(command)
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith('| photos')]
    found = {who.strip(): float(psnr) for _, who, psnr in rows}
    pairs = [(cv2.imread(f'gt/{name}.png'), cv2.imread(f'lq/{name}.png')) for name in ('coffee', 'rocket')]
    noisy = np.mean([peak_signal_noise_ratio(gt, lq) for gt, lq in pairs])
    filtered = [cv2.fastNlMeansDenoisingColored(lq, None, 15, 15, 7, 21) for _, lq in pairs]
    best = np.mean([peak_signal_noise_ratio(gt, image) for (gt, _), image in zip(pairs, filtered, strict=True)])
    assert best > noisy + 1
    expected = {'input': noisy, 'non-local means, h = 15': best, 'network': noisy}
    assert found == {who: pytest.approx(value, abs=1e-4) for who, value in expected.items()}
    height, width = np.asarray(Image.open('out.png')).shape[:2]
    assert height > 2 * 3 * 96 and width > 4 * 3 * 120  # two rows of four parts and an overview
    assert Image.open('out_curve.png').size == (990, 352)


def test_a_curve_is_what_the_log_says(tmp_path: Path) -> None:
    (tmp_path / 'run.log').write_text(LOG, encoding='utf-8')
    curve = curves.read(tmp_path / 'run.log')
    assert curve.losses == [(100, 0.02), (1200, 0.01)]
    assert curve.psnr == [(100, 30.5)]
    (tmp_path / 'other.log').write_text('nothing', encoding='utf-8')
    with pytest.raises(HatPluginError, match=r'other\.log: logs no l_pix'):
        curves.read(tmp_path / 'other.log')


def test_what_cannot_be_shown_is_refused(file: Path) -> None:
    with pytest.raises(HatPluginError, match='--pictures tea: not among coffee, rocket'):
        showcase.main(['-opt', str(file), '-o', 'out.png', '--strengths', '--pictures', 'tea'])
    with pytest.raises(HatPluginError, match='take a file of scale 1'):
        showcase.main(['-opt', str(file), '-o', 'out.png', '--force_yml', 'scale=2', 'network_g:upscale=2'])
    assert not Path('out.png').exists()
