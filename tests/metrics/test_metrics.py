"""Each metric against an independent computation, on uint8 and on floats, in colour, luma and gray."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric, calculate_ssim
from basicsr.metrics.metric_util import to_y_channel

from hat_plugin.metrics.psnrb import blocking_effect, calculate_psnrb
from hat_plugin.metrics.ssim_3d import calculate_ssim_3d

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(params=['uint8', 'float'])
def pair(request: pytest.FixtureRequest, photos: Any) -> Pair:
    """A noisy photograph and itself, (48, 64, 3), BGR, in 0..255."""
    truth = photos.small('coffee', 48, 64)[..., ::-1].astype(np.float64)
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 12, truth.shape), 0, 255)
    return (noisy.round().astype(np.uint8), truth.astype(np.uint8)) if request.param == 'uint8' else (noisy, truth)


def with_skimage(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two arrays of any number of dimensions, their borders repeated: scikit-image's away from its own."""
    from skimage.metrics import structural_similarity

    padded = [np.pad(array.astype(np.float64), 10, mode='edge') for array in (a, b)]
    _, similarity = structural_similarity(
        *padded, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    return float(similarity[(slice(10, -10),) * a.ndim].mean())


def as_nafnet(a: np.ndarray, b: np.ndarray) -> float:
    """A float32 convolution over (H, W, C) with 11x11x11 weights and the border repeated."""
    line = cv2.getGaussianKernel(11, 1.5).ravel()
    weights = torch.from_numpy(np.einsum('i,j,k->ijk', line, line, line)).float()[None, None]

    def blur(volume: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(volume[None, None], (5,) * 6, mode='replicate')
        return torch.nn.functional.conv3d(padded, weights)[0, 0]

    x, y = (torch.from_numpy(array.astype(np.float32)) for array in (a, b))
    mx, my = blur(x), blur(y)
    covariance, variances = blur(x * y) - mx * my, blur(x * x) - mx * mx + blur(y * y) - my * my
    above = (2 * mx * my + 6.5025) * (2 * covariance + 58.5225)
    return float((above / ((mx * mx + my * my + 6.5025) * (variances + 58.5225))).mean())


def test_ssim_3d_is_matlabs_and_nafnets(pair: Pair) -> None:
    found = calculate_ssim_3d(*pair, crop_border=0)
    assert found == pytest.approx(with_skimage(*pair), abs=1e-9)
    assert found == pytest.approx(as_nafnet(*pair), abs=2e-5)  # NAFNet's float32
    assert found == calculate_ssim_3d(*(picture[..., ::-1] for picture in pair), crop_border=0)  # RGB or BGR
    assert abs(found - calculate_ssim(*pair, crop_border=0)) > 0.01  # BasicSR's, per channel


def test_the_two_figures_of_the_documentation(photos: Any) -> None:
    truth = photos['astronaut'][..., ::-1].astype(np.float64)
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 15, truth.shape), 0, 255)
    figures = calculate_ssim(noisy, truth, crop_border=0), calculate_ssim_3d(noisy, truth, crop_border=0)
    assert figures == pytest.approx((0.494, 0.661), abs=5e-4)


def test_ssim_3d_of_luma_and_gray_is_plain_with_a_repeated_border(pair: Pair) -> None:
    luma = [to_y_channel(picture)[..., 0] for picture in pair]
    expected = with_skimage(*luma)
    assert calculate_ssim_3d(*pair, crop_border=0, test_y_channel=True) == pytest.approx(expected, abs=1e-9)
    gray = tuple(picture[..., 1] for picture in pair)
    expected = with_skimage(*gray)
    assert calculate_ssim_3d(*gray, crop_border=0) == pytest.approx(expected, abs=1e-9)
    assert calculate_ssim_3d(*gray, crop_border=0, test_y_channel=True) == pytest.approx(expected, abs=1e-9)
    assert calculate_ssim(*gray, crop_border=0) != pytest.approx(expected, abs=1e-4)


def test_basicsrs_two_metrics_are_scikit_images_on_uint8_and_on_floats(pair: Pair) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    for y in (False, True):
        a, b = (to_y_channel(picture) if y else picture.astype(np.float64) for picture in pair)
        common: dict[str, Any] = {'crop_border': 4, 'test_y_channel': y}
        inside = tuple(picture[4:-4, 4:-4].astype(np.float64) for picture in (a, b))
        psnr = calculate_metric({'img': pair[0], 'img2': pair[1]}, {'type': 'calculate_psnr', **common})
        assert psnr == pytest.approx(peak_signal_noise_ratio(inside[1], inside[0], data_range=255), abs=1e-5)
        ssim = calculate_metric({'img': pair[0], 'img2': pair[1]}, {'type': 'calculate_ssim', **common})
        options: dict[str, Any] = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
        expected = structural_similarity(*inside, channel_axis=2, data_range=255, **options)
        assert ssim == pytest.approx(expected, abs=1e-6)


def slow_psnrb(restored: np.ndarray, truth: np.ndarray) -> float:
    """By the paper's sums, pair by pair."""
    x, y = restored.astype(float), truth.astype(float)
    height, width = x.shape
    parted = other = 0.0
    for i in range(height):
        for j in range(width):
            for down, right, position in ((0, 1, j), (1, 0, i)):
                if i + down < height and j + right < width:
                    square = (x[i, j] - x[i + down, j + right]) ** 2
                    if position % 8 == 7:
                        parted += square
                    else:
                        other += square
    n_parted = height * (width // 8) - height + width * (height // 8) - width
    n_other = height * (width - 1) + width * (height - 1) - n_parted
    excess = parted / n_parted - other / n_other
    eta = math.log2(8) / math.log2(min(height, width)) if excess > 0 else 0
    return 10 * math.log10(255**2 / (((x - y) ** 2).mean() + eta * excess))


@pytest.mark.parametrize('quality', [10, 40])
@pytest.mark.parametrize('shape', [(48, 64), (45, 61)])
def test_psnrb_of_jpeg_pair_by_pair(photos: Any, quality: int, shape: tuple[int, int]) -> None:
    truth = cv2.cvtColor(photos.small('chelsea', *shape), cv2.COLOR_RGB2GRAY)
    coded = cv2.imdecode(cv2.imencode('.jpg', truth, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    found = calculate_psnrb(coded, truth, crop_border=0)
    assert found == pytest.approx(slow_psnrb(coded, truth), abs=1e-9)
    assert calculate_psnrb(coded[..., None], truth[..., None], crop_border=0, test_y_channel=True) == found
    psnr = calculate_metric({'img': coded, 'img2': truth}, {'type': 'calculate_psnr', 'crop_border': 0})
    assert found < psnr if quality == 10 else found <= psnr
    inner = tuple(picture[8:-8, 8:-8] for picture in (coded, truth))
    assert calculate_psnrb(coded, truth, crop_border=8) == calculate_psnrb(*inner, crop_border=0)


def test_psnrb_without_blocks_is_psnr_and_of_colour_a_mean(pair: Pair) -> None:
    noisy, truth = pair
    smooth = np.clip(truth.astype(np.float64) + 5, 0, 255)
    assert blocking_effect(np.add.outer(np.arange(48.0), np.arange(64.0))) == 0
    parts = [slow_psnrb(noisy[..., channel], truth[..., channel]) for channel in range(3)]
    assert calculate_psnrb(noisy, truth, crop_border=0) == pytest.approx(np.mean(parts), abs=1e-9)
    luma = slow_psnrb(*(to_y_channel(picture)[..., 0] for picture in pair))
    assert calculate_psnrb(noisy, truth, crop_border=0, test_y_channel=True) == pytest.approx(luma, abs=1e-9)
    assert calculate_psnrb(truth * 0, truth * 0, crop_border=0) == math.inf
    assert calculate_psnrb(smooth, truth, crop_border=0) > calculate_psnrb(noisy, truth, crop_border=0)


@pytest.mark.parametrize('metric', [calculate_ssim_3d, calculate_psnrb])
def test_border_order_and_what_is_refused(metric: Callable[..., float], pair: Pair) -> None:
    noisy, truth = pair
    inside = tuple(picture[8:-8, 8:-8] for picture in pair)
    assert metric(noisy, truth, crop_border=8) == metric(*inside, crop_border=0) != metric(noisy, truth, crop_border=0)
    turned = tuple(picture.transpose(2, 0, 1) for picture in pair)
    assert metric(*turned, crop_border=8, input_order='CHW') == metric(noisy, truth, crop_border=8)
    assert metric(noisy, truth, crop_border=8, better='higher') == metric(noisy, truth, crop_border=8)
    with pytest.raises(ValueError, match='crop_border: 24 leaves nothing of a picture of 48x64'):
        metric(noisy, truth, crop_border=24)
    with pytest.raises(ValueError, match='cannot be compared'):
        metric(noisy, truth[:-1], crop_border=0)
    with pytest.raises(ValueError, match='input_order'):
        metric(noisy, truth, crop_border=0, input_order='CWH')


def test_psnrb_keeps_to_the_blocks(pair: Pair) -> None:
    with pytest.raises(ValueError, match='crop_border: 4 cuts through blocks; 0 or a multiple of 8'):
        calculate_psnrb(*pair, crop_border=4)
    with pytest.raises(ValueError, match='12x64 pixels are less than two blocks'):
        calculate_psnrb(*(picture[:12] for picture in pair), crop_border=0)
