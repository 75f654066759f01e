"""Charbonnier's distance of edges, as MPRNet adds it to that of pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hat_plugin.losses.picture_loss import PictureLoss, finite, separable

TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)  # Burt and Adelson's, a = 0.4


class EdgeLoss(PictureLoss):
    """sqrt((L(pred) - L(target))² + eps²), with L one level of a Laplacian pyramid.

    L(x) = x - G(up(G(x))): G blurs with a 5x5 Gaussian, the border repeated, and `up` keeps every second pixel of every
    second row, four times as bright, with zeros between.

    Source: Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021 (MPRNet), eq. 4; weighted 0.05 there.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over pixels and channels, or 'none' for (B, C, H, W).
        eps: below it the distance is smooth.

    Raises:
        ValueError: eps is not above 0.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', eps: float = 1e-3) -> None:
        super().__init__(loss_weight, reduction)
        self.eps = finite('eps', eps, above=0)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W); L is linear, so that one of the difference does."""
        return torch.sqrt(laplacian(pred - target).square() + self.eps**2)


def laplacian(images: Tensor) -> Tensor:
    """What one step down and up a Gaussian pyramid takes from pictures, (B, C, H, W)."""
    upsampled = torch.zeros_like(images)
    upsampled[..., ::2, ::2] = 4 * _blur(images)[..., ::2, ::2]
    return images - _blur(upsampled)


def _blur(images: Tensor) -> Tensor:
    return separable(F.pad(images, (2, 2, 2, 2), mode='replicate'), torch.tensor(TAPS, dtype=torch.float64))
