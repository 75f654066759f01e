"""What metrics are handed in validation, and what the log says of it; our losses in a training step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from basicsr.models import build_model
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hat_plugin.engine.options import prepare_options
from hat_plugin.metrics.psnrb import calculate_psnrb
from hat_plugin.metrics.ssim_3d import calculate_ssim_3d
from hat_plugin.models.validation import as_picture, describe_metric

METRICS: dict[str, dict[str, Any]] = {
    'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': False, 'better': 'higher'},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': False},
}


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One pair, as BasicSR's data sets give it."""

    def __init__(self, gt: torch.Tensor) -> None:
        self.gt, self.opt = gt, {'name': 'pair', 'phase': 'val'}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        lq = torch.nn.functional.avg_pool2d(self.gt, 2)
        return {'gt': self.gt, 'lq': lq, 'lq_path': 'one.png', 'gt_path': 'one.png'}


@pytest.fixture
def gt(photos: Any) -> torch.Tensor:
    """(3, 48, 64), in [0, 1], between the levels of 8 bits."""
    photo = torch.from_numpy(photos.small('coffee', 48, 64)).permute(2, 0, 1).float() / 255
    return (photo * 0.9 + 0.0123).clamp(0, 1)


def validated(tmp_path: Path, gt: torch.Tensor, **val: Any) -> Any:
    """A model after validation, with one channel where the picture has one."""
    opt = copy.deepcopy(training.OPTIONS)
    opt['network_g'].update(in_chans=gt.shape[0], drop_path_rate=0.0)
    opt['val'].update(val)
    torch.manual_seed(0)
    model = build_model(prepare_options(opt, root_path=tmp_path, is_train=True))
    model.validation(torch.utils.data.DataLoader(Pictures(gt)), 1, None)
    return model


def arrays(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """The model's output, clipped, and the truth; (H, W, C) in [0, 1], float64, without the border of 2."""
    output, truth = (tensor[0].clamp(0, 1).permute(1, 2, 0).double().numpy() for tensor in (model.output, model.gt))
    return output[2:-2, 2:-2], truth[2:-2, 2:-2]


def scores(a: np.ndarray, b: np.ndarray, largest: float) -> dict[str, Any]:
    """Both metrics by scikit-image."""
    options: dict[str, Any] = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
    similarity = structural_similarity(a, b, channel_axis=2, data_range=largest, **options)
    psnr = peak_signal_noise_ratio(b, a, data_range=largest)
    return {'psnr': pytest.approx(psnr, abs=1e-4), 'ssim': pytest.approx(similarity, abs=1e-6)}


@pytest.mark.parametrize('channels', [3, 1])
def test_floats_and_uint8_are_each_scikit_images(tmp_path: Path, gt: torch.Tensor, channels: int) -> None:
    gt = gt[:channels]
    rounded = validated(tmp_path, gt, metrics=METRICS)
    unrounded = validated(tmp_path, gt, metrics=METRICS, use_image=False)
    output, truth = arrays(unrounded)
    eight_bit = [(array * 255).round().astype(np.uint8) for array in (output, truth)]
    assert unrounded.metric_results == scores(output, truth, 1)
    assert rounded.metric_results == scores(*eight_bit, 255)
    assert rounded.metric_results['psnr'] != pytest.approx(unrounded.metric_results['psnr'], abs=2e-4)


def test_a_metric_may_ask_for_floats_by_itself(tmp_path: Path, gt: torch.Tensor) -> None:
    both = {'rounded': METRICS['psnr'], 'floats': {**METRICS['psnr'], 'use_image': False}}
    model = validated(tmp_path, gt, metrics=both)
    found = model.metric_results
    assert found['floats'] == scores(*arrays(model), 1)['psnr'] != found['rounded']
    turned = {'rounded': {**METRICS['psnr'], 'use_image': True}, 'floats': METRICS['psnr']}
    assert validated(tmp_path, gt, metrics=turned, use_image=False).metric_results == found


def test_our_metrics_take_what_validation_gives(tmp_path: Path, gt: torch.Tensor) -> None:
    metrics = {
        'ssim': {'type': 'calculate_ssim_3d', 'crop_border': 2, 'better': 'higher', 'use_image': False},
        'psnrb': {'type': 'calculate_psnrb', 'crop_border': 0, 'test_y_channel': True, 'better': 'higher'},
    }
    for picture in (gt, gt[:1]):
        model = validated(tmp_path, picture, metrics=metrics)
        floats = [array[..., ::-1] * 255 for array in arrays(model)]
        assert model.metric_results['ssim'] == pytest.approx(calculate_ssim_3d(*floats, crop_border=0), abs=1e-6)
        whole = [as_picture(tensor, use_image=True) for tensor in (model.output, model.gt)]
        expected = calculate_psnrb(*whole, crop_border=0, test_y_channel=True)
        assert model.metric_results['psnrb'] == pytest.approx(expected)


def test_what_a_metric_sees() -> None:
    batch = torch.tensor([[0.2, 1.5], [-0.5, 0.999]])[None, None].repeat(1, 3, 1, 1)
    batch[:, 0] = 0.25  # red
    picture = as_picture(batch.clone(), use_image=False)
    assert picture.dtype == np.float64
    np.testing.assert_allclose(picture[..., 2], 0.25 * 255)
    np.testing.assert_allclose(picture[..., 0], [[51, 255], [0, 0.999 * 255]], rtol=1e-6)
    np.testing.assert_array_equal(as_picture(batch.clone(), use_image=True), picture.round().astype(np.uint8))
    assert as_picture(batch[:, :1].clone(), use_image=False).shape == (2, 2)


def test_the_protocol_says_which_numbers() -> None:
    assert describe_metric(METRICS['psnr'], {}) == 'calculate_psnr on RGB, border 2, uint8'
    assert describe_metric(METRICS['psnr'], {'use_image': False}) == 'calculate_psnr on RGB, border 2, float'
    assert describe_metric({**METRICS['psnr'], 'use_image': True}, {'use_image': False}).endswith('uint8')
    assert describe_metric(METRICS['psnr'], {'use_image': None}).endswith('uint8')


def test_the_log_names_every_term(tmp_path: Path, gt: torch.Tensor) -> None:
    opt = copy.deepcopy(training.OPTIONS)
    opt['train']['losses'] = [
        {'type': 'SSIMLoss', 'loss_weight': 0.1},
        {'type': 'FFTLoss', 'loss_weight': 0.01, 'name': 'fft'},
        {'type': 'EdgeLoss', 'loss_weight': 0.05, 'name': 'edge'},
    ]
    opt['train']['pixel_opt'] = {'type': 'PSNRLoss', 'loss_weight': 0.5}
    torch.manual_seed(0)
    model = build_model(prepare_options(opt, root_path=tmp_path, is_train=True))
    model.feed_data({'gt': gt[None], 'lq': torch.nn.functional.avg_pool2d(gt[None], 2)})
    model.update_learning_rate(1)
    model.optimize_parameters(1)
    log = model.get_current_log()
    assert list(log) == ['l_pix', 'l_SSIMLoss', 'l_fft', 'l_edge', 'grad_norm']
    error = (model.output - gt).square().mean().item()
    assert log['l_pix'] == pytest.approx(0.5 * 10 * np.log10(error + 1e-8), rel=1e-5)
    spectrum = np.fft.fft2((model.output[0] - gt).double().numpy())
    assert log['l_fft'] == pytest.approx(0.01 * np.mean([abs(spectrum.real), abs(spectrum.imag)]), rel=1e-4)
    assert all(np.isfinite(value) for value in log.values())
