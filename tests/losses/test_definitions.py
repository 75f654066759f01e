"""Each loss against an independent computation of its definition, each option by its effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from scipy import ndimage
from torch import Tensor

from hat_plugin.losses.edge_loss import EdgeLoss
from hat_plugin.losses.fft_loss import FFTLoss
from hat_plugin.losses.focal_frequency_loss import FocalFrequencyLoss
from hat_plugin.losses.gradient_weighted_loss import GradientWeightedLoss
from hat_plugin.losses.psnr_loss import PSNRLoss
from hat_plugin.losses.ssim_loss import MSSSIMLoss, SSIMLoss


def channels(pair: tuple[Tensor, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The channels of all pictures, as pairs of (H, W)."""
    first, second = (images.flatten(0, 1).numpy() for images in pair)
    return list(zip(first, second, strict=True))


def test_psnr_loss_is_minus_scikit_images_psnr(pair: tuple[Tensor, Tensor]) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    found = PSNRLoss(reduction='none')(*pair)
    for value, first, second in zip(found, *pair, strict=True):
        expected = peak_signal_noise_ratio(second.numpy(), first.numpy(), data_range=1)
        assert value.item() == pytest.approx(-expected, abs=1e-4)  # 1e-8 beside an error of 1e-2


def test_psnr_loss_on_luma(pair: tuple[Tensor, Tensor]) -> None:
    from basicsr.utils.color_util import rgb2ycbcr_pt

    luma = [rgb2ycbcr_pt(images.float(), y_only=True).double() for images in pair]
    torch.testing.assert_close(PSNRLoss(toY=True)(*pair), PSNRLoss()(*luma), rtol=1e-5, atol=1e-4)
    assert PSNRLoss(toY=True)(*pair) != PSNRLoss()(*pair)


@pytest.mark.parametrize('sigma', [1.5, 1.0])
def test_ssim_loss_is_scikit_images(pair: tuple[Tensor, Tensor], sigma: float) -> None:
    from skimage.metrics import structural_similarity

    size = 2 * int(3.5 * sigma + 0.5) + 1  # scikit-image's window follows from sigma
    found = 1 - SSIMLoss(reduction='none', sigma=sigma, window_size=size)(*pair).mean(dim=(2, 3)).flatten()
    for value, (first, second) in zip(found, channels(pair), strict=True):
        expected = structural_similarity(
            first, second, gaussian_weights=True, sigma=sigma, use_sample_covariance=False, data_range=1
        )
        assert value.item() == pytest.approx(expected, abs=1e-10)


def test_ms_ssim_loss_is_that_of_pytorch_msssim() -> None:
    package = pytest.importorskip('pytorch_msssim')
    from skimage import data

    truth = torch.from_numpy(data.astronaut()[:192, :256].copy()).permute(2, 0, 1)[None].double() / 255
    noisy = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))  # its own are rounded to float32, which is seen at 1e-5
    window = torch.from_numpy(taps / taps.sum()).expand(3, 1, 1, 11)
    expected = 1 - package.ms_ssim(noisy, truth, data_range=1, win=window)
    torch.testing.assert_close(MSSSIMLoss()(noisy, truth), expected, rtol=1e-6, atol=1e-8)
    weights = [0.2, 0.3, 0.5]
    expected = 1 - package.ms_ssim(noisy, truth, data_range=1, win=window, weights=weights)
    torch.testing.assert_close(MSSSIMLoss(weights=weights)(noisy, truth), expected, rtol=1e-6, atol=1e-8)


def test_ms_ssim_loss_by_hand_on_odd_sides(pair: tuple[Tensor, Tensor]) -> None:
    """Wang's own reduction: a 2x2 mean over a border mirrored outwards, then every second pixel."""
    odd = tuple(images[..., :47, :63] for images in pair)
    found = MSSSIMLoss(reduction='none', weights=[0.3, 0.7])(*odd).flatten()
    for value, (first, second) in zip(found, channels(odd), strict=True):
        fine = _contrast(first, second)[1].mean()
        half = [np.pad(image, (0, 1), mode='symmetric') for image in (first, second)]
        half = [(p[:-1, :-1] + p[1:, :-1] + p[:-1, 1:] + p[1:, 1:])[::2, ::2] / 4 for p in half]
        luminance, contrast = _contrast(*half)
        assert value.item() == pytest.approx(1 - fine**0.3 * (luminance * contrast).mean() ** 0.7, abs=1e-10)


def _contrast(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM's luminance and contrast, windows inside the picture."""

    def mean(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, truncate=3.4)[5:-5, 5:-5]

    ma, mb = mean(a), mean(b)
    contrast = (2 * (mean(a * b) - ma * mb) + 0.0009) / (mean(a * a) - ma**2 + mean(b * b) - mb**2 + 0.0009)
    return (2 * ma * mb + 0.0001) / (ma**2 + mb**2 + 0.0001), contrast


def test_ms_ssim_of_pictures_that_contradict_each_other_has_a_gradient() -> None:
    image = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = MSSSIMLoss(weights=[0.5, 0.5])(image, 1 - image.detach())
    found.backward()
    assert 0.99 < found.item() <= 1
    assert torch.isfinite(image.grad).all()


def test_fft_loss_by_definition(pair: tuple[Tensor, Tensor]) -> None:
    """The transform as products with matrices of exp(-2 pi i k n / N)."""

    def matrix(size: int) -> np.ndarray:
        return np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size)

    parts = []
    for first, second in channels(pair):
        difference = matrix(48) @ first @ matrix(64) - matrix(48) @ second @ matrix(64)
        parts += [np.abs(difference.real), np.abs(difference.imag)]
    expected = float(np.mean(parts))
    assert FFTLoss()(*pair).item() == pytest.approx(expected, rel=1e-9)
    assert FFTLoss(norm='ortho')(*pair).item() == pytest.approx(expected / np.sqrt(48 * 64), rel=1e-9)


@pytest.mark.parametrize(
    'options',
    [
        {}, {'alpha': 2.0}, {'alpha': 0.5}, {'patch_factor': 4}, {'log_matrix': True}, {'batch_matrix': True},
        {'alpha': 0.5, 'patch_factor': 2, 'log_matrix': True, 'batch_matrix': True},
    ],
)  # fmt: skip
def test_focal_frequency_loss_in_numpy(pair: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
    count = options.get('patch_factor', 1)
    squares = []
    for first, second in channels(pair):
        for rows in np.split(first - second, count, axis=0):
            for patch in np.split(rows, count, axis=1):
                squares.append(np.abs(np.fft.fft2(patch)) ** 2 / patch.size)
    weights = [square ** (options.get('alpha', 1) / 2) for square in squares]
    if options.get('log_matrix'):
        weights = [np.log(weight + 1) for weight in weights]
    largest = max(weight.max() for weight in weights)
    scaled = [weight / (largest if options.get('batch_matrix') else weight.max()) for weight in weights]
    expected = float(np.mean([weight * square for weight, square in zip(scaled, squares, strict=True)]))
    assert FocalFrequencyLoss(**options)(*pair).item() == pytest.approx(expected, rel=1e-9)
    if options:
        assert expected != pytest.approx(FocalFrequencyLoss()(*pair).item(), rel=1e-3)


def test_focal_frequency_loss_with_alpha_0_is_mse(pair: tuple[Tensor, Tensor]) -> None:
    expected = torch.nn.functional.mse_loss(*pair)
    torch.testing.assert_close(FocalFrequencyLoss(alpha=0)(*pair), expected)


@pytest.mark.parametrize('eps', [1e-3, 0.1])
def test_edge_loss_with_scipy(pair: tuple[Tensor, Tensor], eps: float) -> None:
    kernel = np.outer([0.05, 0.25, 0.4, 0.25, 0.05], [0.05, 0.25, 0.4, 0.25, 0.05])

    def laplacian(image: np.ndarray) -> np.ndarray:
        sparse = ndimage.correlate(image, kernel, mode='nearest')
        sparse[1::2] = 0
        sparse[:, 1::2] = 0
        return image - ndimage.correlate(4 * sparse, kernel, mode='nearest')

    edges = [laplacian(first) - laplacian(second) for first, second in channels(pair)]
    assert EdgeLoss(eps=eps)(*pair).item() == pytest.approx(np.mean(np.hypot(edges, eps)), rel=1e-9)


@pytest.mark.parametrize('alpha', [4.0, 1.0, 0.0])
def test_gradient_weighted_loss_with_scipy(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    values = []
    for first, second in channels(pair):
        gradients = [
            ndimage.sobel(first, axis, mode='nearest') - ndimage.sobel(second, axis, mode='nearest') for axis in (0, 1)
        ]
        values.append((1 + alpha * abs(gradients[0])) * (1 + alpha * abs(gradients[1])) * abs(first - second))
    assert GradientWeightedLoss(alpha=alpha)(*pair).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_basicsrs_charbonnier_loss_takes_the_eps_of_both_papers(pair: tuple[Tensor, Tensor]) -> None:
    """SwinIR: sqrt(d² + 1e-9); MPRNet: sqrt(d² + (1e-3)²), which is eps 1e-6 there."""
    first, second = pair
    for eps in (1e-9, 1e-6):
        loss = build_loss({'type': 'CharbonnierLoss', 'eps': eps})
        expected = np.sqrt((first - second).numpy() ** 2 + eps).mean()
        assert loss(first, second).item() == pytest.approx(expected, rel=1e-12)
        image = first.float().requires_grad_()
        loss(image, image.detach()).backward()
        assert torch.isfinite(image.grad).all()
