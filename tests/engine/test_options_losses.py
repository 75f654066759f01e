"""Losses and metrics of ours in option files: right ones pass, wrong ones are refused before a run starts."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from option_examples import options, problems

RIGHT: list[dict[str, Any]] = [
    {'type': 'PSNRLoss', 'loss_weight': 1, 'reduction': 'mean'},
    {'type': 'PSNRLoss', 'toY': True},
    {'type': 'SSIMLoss', 'loss_weight': 0.1, 'window_size': 7},
    {'type': 'FFTLoss', 'loss_weight': 0.1, 'norm': 'ortho'},
    {'type': 'FocalFrequencyLoss', 'alpha': 1.0, 'patch_factor': 4, 'log_matrix': True, 'batch_matrix': True},
    {'type': 'EdgeLoss', 'loss_weight': 0.05},
    {'type': 'GradientWeightedLoss', 'alpha': 4},
    {'type': 'MSSSIMLoss', 'weights': [0.2, 0.3, 0.5]},
]


@pytest.mark.parametrize('loss', RIGHT, ids=[str(loss) for loss in RIGHT])
def test_our_losses_pass(loss: dict[str, Any]) -> None:
    assert problems(options(train__pixel_opt=loss)) == []
    assert problems(options(train__losses=[{**loss, 'name': 'mine'}])) == []


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        ({'type': 'PSNRLoss', 'toy': True}, "toy: unknown argument of PSNRLoss; did you mean 'toY'?"),
        ({'type': 'SSIMLoss', 'window': 7}, "window: unknown argument of SSIMLoss; did you mean 'window_size'?"),
        ({'type': 'SSIMLoss', 'window_size': 8}, 'refused: window_size: 8: an odd number of pixels is wanted'),
        ({'type': 'SSIMLoss', 'window_size': 65}, 'pictures of 64x64 are smaller than the window of 65'),
        ({'type': 'FFTLoss', 'norm': 'forward'}, "refused: norm: 'forward': backward or ortho is wanted"),
        ({'type': 'FFTLoss', 'reduction': 'none'}, 'it gives no single number; write reduction: mean'),
        ({'type': 'FocalFrequencyLoss', 'patch_factor': 3}, 'patch_factor: 3 does not divide the sides of'),
        ({'type': 'EdgeLoss', 'eps': 0}, 'refused: eps: 0: a finite number above 0 is wanted'),
        ({'type': 'GradientWeightedLoss', 'alpha': '4'}, "alpha: '4': a number is wanted"),
        ({'type': 'MSSSIMLoss'}, 'refused: MSSSIMLoss: pictures of 64x64 are too small for 5 scales, which need 161'),
        ({'type': 'MSSIMLoss'}, "'MSSIMLoss' is no known loss; did you mean 'MSSSIMLoss'?"),
        ({'type': 'LPIPSLoss', 'net': 'resnet'}, "refused: net: 'resnet': one of alex, vgg, squeeze is wanted"),
    ],
)
def test_wrong_ones_are_refused(loss: dict[str, Any], message: str) -> None:
    (line,) = problems(options(train__pixel_opt=loss))
    assert line.startswith('train: pixel_opt: ')
    assert message in line


def test_losses_are_tried_on_patches_of_the_training_set() -> None:
    opt = options(train__pixel_opt={'type': 'MSSSIMLoss'}, datasets__train__gt_size=192)
    assert problems(opt) == []
    opt = options(train__pixel_opt={'type': 'PSNRLoss', 'toY': True}, network_g__num_in_ch=1, network_g__num_out_ch=1)
    opt['datasets']['train']['color'] = opt['datasets']['val_1']['color'] = 'y'
    assert any('toY: pictures of 3 channels are wanted, these have 1' in line for line in problems(opt))


def test_a_missing_package_is_told_of_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'lpips', None)
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    metrics = {'dists': {'type': 'calculate_dists', 'crop_border': 0, 'better': 'lower'}}
    found = problems(options(train__losses=[{'type': 'LPIPSLoss'}], val__metrics=metrics))
    assert [line.split(': refused: ')[0] for line in found] == ['train: losses: 0', 'val: metrics: dists']
    assert '`pip install lpips`' in found[0]
    assert '`pip install pyiqa`' in found[1]


@pytest.mark.parametrize(
    ('metric', 'message'),
    [
        ({'type': 'calculate_ssim_3d', 'crop_border': 0, 'use_image': False}, None),
        ({'type': 'calculate_ssim_3d', 'crop_border': 0, 'input_order': 'CHW', 'better': 'higher'}, None),
        ({'type': 'calculate_psnrb', 'crop_border': 8, 'test_y_channel': True}, None),
        ({'type': 'calculate_psnr', 'crop_border': 0, 'use_image': False}, None),
        ({'type': 'calculate_niqe', 'crop_border': 0, 'convert_to': 'y'}, None),
        ({'type': 'calculate_ssim_3d'}, 'crop_border: missing'),
        ({'type': 'calculate_ssim_3d', 'crop_border': 0, 'y': True}, 'y: unknown argument of calculate_ssim_3d'),
        ({'type': 'calculate_psnrb', 'crop_border': 4}, 'refused: crop_border: 4 cuts through blocks'),
        ({'type': 'calculate_psnr', 'crop_border': 0, 'use_image': 'no'}, "use_image: 'no': true or false"),
        ({'type': 'calculate_ssim', 'crop_border': 0, 'ssim3d': True}, 'ssim3d: has no effect on BasicSR'),
        ({'type': 'calculate_psnr', 'crop_border': 0, 'colour': 1}, 'colour: unknown argument of calculate_psnr'),
    ],
)
def test_metrics(metric: dict[str, Any], message: str | None) -> None:
    found = problems(options(val__metrics={'m': metric}))
    assert len(found) == (message is not None)
    assert all(line.startswith('val: metrics: m: ') and str(message) in line for line in found)


def test_nafnets_use_image_is_known() -> None:
    assert problems(options(val__use_image=False)) == []
    assert any('val: use_image' in line for line in problems(options(val__use_image='maybe')))
