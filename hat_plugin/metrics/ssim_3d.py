"""SSIM of a colour picture as one volume: what NAFNet's and Restormer's tables hold."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

from hat_plugin.metrics.pictures import prepared_pair

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_OFFSETS = np.arange(-5, 6)
TAPS = np.exp(-0.5 * (_OFFSETS / 1.5) ** 2) / np.exp(-0.5 * (_OFFSETS / 1.5) ** 2).sum()


def calculate_ssim_3d(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    input_order: str = 'HWC',
    test_y_channel: bool = False,
    better: str = 'higher',
) -> float:
    """MATLAB's ``ssim(A, ref)``, which for a colour picture has windows of 11x11x11, over the channels too.

    The window is a Gaussian of sigma 1.5, the border pixels and channels are repeated outwards, and the mean is over
    all pixels and channels. Of a gray picture, or luma, it is the plain SSIM with a repeated border (BasicSR's
    ``calculate_ssim`` leaves the border out instead).

    Source: MATLAB's ssim since R2014a, with which Restormer was measured; NAFNet's ``calculate_ssim`` with its default
    ``ssim3d: true`` is the same in float32.

    Args:
        img, img2: (H, W, C), BGR or gray, or (H, W); in 0..255, uint8 or float.
        crop_border: pixels left out along each side.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: compare luma.
        better: BasicSR's validation hands it over and reads it itself.

    Returns:
        At most 1.

    Raises:
        ValueError: see `prepared_pair`.
    """
    a, b = prepared_pair(img, img2, crop_border, input_order, test_y_channel)
    mean_a, mean_b, square_a, square_b, product = (_blur(volume) for volume in (a, b, a * a, b * b, a * b))
    covariance = product - mean_a * mean_b
    variances = square_a + square_b - mean_a**2 - mean_b**2
    similarity = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return float(np.mean(similarity / ((mean_a**2 + mean_b**2 + C1) * (variances + C2))))


def _blur(volume: np.ndarray) -> np.ndarray:
    """Along each axis in turn; an axis of length 1 stays as it is, since its border is repeated."""
    for axis in range(volume.ndim):
        volume = correlate1d(volume, TAPS, axis=axis, mode='nearest')
    return volume
