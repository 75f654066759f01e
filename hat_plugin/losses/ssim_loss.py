"""Structural similarity as a loss, at one scale and at several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hat_plugin.losses.picture_loss import PictureLoss, finite, separable

C1, C2 = 0.01**2, 0.03**2  # for pictures in [0, 1]
# Of the five scales, finest first: Wang et al. 2003, section 3.2.
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class SSIMLoss(PictureLoss):
    """1 - SSIM, each channel by itself, windows wholly inside the picture.

    SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx² + my² + C1)(sx² + sy² + C2)) with Gaussian-weighted means and
    (co)variances, C1 = 0.01² and C2 = 0.03².

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, TIP 2004.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over the windows, or 'none' for (B, C, H - window_size + 1, W - window_size + 1).
        window_size: side of the window in pixels, odd.
        sigma: its standard deviation in pixels.

    Raises:
        ValueError: the window is even or empty; in `forward`, the pictures are smaller than it.
    """

    def __init__(
        self, loss_weight: float = 1.0, reduction: str = 'mean', window_size: int = 11, sigma: float = 1.5
    ) -> None:
        super().__init__(loss_weight, reduction)
        self.taps = gaussian_taps(window_size, sigma)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """1 - SSIM of each window."""
        if min(pred.shape[-2:]) < len(self.taps):
            raise ValueError(
                f'SSIMLoss: pictures of {_size(pred)} are smaller than the window of {len(self.taps)}; train on larger '
                'patches (gt_size), or lower window_size'
            )
        luminance, contrast = similarity(pred, target, self.taps)
        return 1 - luminance * contrast


class MSSSIMLoss(PictureLoss):
    """1 - MS-SSIM: contrast and structure at each scale, luminance at the coarsest, each to the power of its weight.

    From scale to scale pictures are averaged over 2x2 pixels. A mean contrast below 1e-6, where pictures contradict
    each other, counts as 1e-6: a power of it would have no finite gradient.

    Source: Wang et al., Multiscale Structural Similarity for Image Quality Assessment, Asilomar 2003.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over pictures and channels, or 'none' for (B, C).
        weights: one a scale, finest first. Five scales need patches of 161 pixels or more, four of 81, three of 41.
        window_size: side of the window in pixels, odd.
        sigma: its standard deviation in pixels.

    Raises:
        ValueError: weights are missing or negative, the window even; in `forward`, the pictures are too small.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        weights: Sequence[float] = MS_WEIGHTS,
        window_size: int = 11,
        sigma: float = 1.5,
    ) -> None:
        super().__init__(loss_weight, reduction)
        if not isinstance(weights, list | tuple) or not weights:
            raise ValueError(f'weights: {weights!r}: a list of numbers is wanted, one a scale')
        self.weights = [finite('weights', weight, above=0) for weight in weights]
        self.taps = gaussian_taps(window_size, sigma)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """1 - MS-SSIM, (B, C)."""
        wanted = (len(self.taps) - 1) * 2 ** (len(self.weights) - 1) + 1
        if min(pred.shape[-2:]) < wanted:
            raise ValueError(
                f'MSSSIMLoss: pictures of {_size(pred)} are too small for {len(self.weights)} scales, which need '
                f'{wanted} pixels; train on larger patches (gt_size), or give fewer weights'
            )
        product = pred.new_ones(pred.shape[:2])
        for scale, weight in enumerate(self.weights):
            if scale:  # ceil_mode: the last column of an odd width is averaged with itself
                pred, target = (F.avg_pool2d(images, 2, ceil_mode=True) for images in (pred, target))
            luminance, contrast = similarity(pred, target, self.taps)
            factor = contrast if scale < len(self.weights) - 1 else luminance * contrast
            product = product * factor.mean(dim=(2, 3)).clamp(min=1e-6) ** weight
        return 1 - product


def gaussian_taps(size: int, sigma: float) -> Tensor:
    """A Gaussian in `size` samples that sum to 1, float64.

    Raises:
        ValueError: the size is even or below 1, or sigma not above 0.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f'window_size: {size!r}: an odd number of pixels is wanted, 11 say')
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.softmax(-0.5 * (offsets / finite('sigma', sigma, above=0)).square(), dim=0)


def similarity(a: Tensor, b: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's two factors in each window: luminance, and contrast with structure; (B, C, H - K + 1, W - K + 1) each."""
    # One by one: what is made of the truth alone needs no gradient.
    mean_a, mean_b, square_a, square_b, product = (separable(x, taps) for x in (a, b, a * a, b * b, a * b))
    variances = square_a + square_b - mean_a.square() - mean_b.square()
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    contrast = (2 * (product - mean_a * mean_b) + C2) / (variances + C2)
    return luminance, contrast


def _size(images: Tensor) -> str:
    return f'{images.shape[-2]}x{images.shape[-1]}'
