"""L1 that counts more where the gradients of the pictures disagree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hat_plugin.losses.picture_loss import PictureLoss, finite

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


class GradientWeightedLoss(PictureLoss):
    """(1 + alpha Dx)(1 + alpha Dy) |pred - target|, with Dx and Dy the absolute differences of Sobel's gradients.

    The gradients are those of the 3x3 operator without a factor; the border is repeated, so that pictures which differ
    by a constant have no gradients that differ.

    Source: Wei et al., Component Divide-and-Conquer for Real-World Image Super-Resolution, ECCV 2020 (CDC), section
    3.4; alpha is 4 there.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over pixels and channels, or 'none' for (B, C, H, W).
        alpha: how much gradients count; 0 makes it L1.

    Raises:
        ValueError: alpha is negative.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', alpha: float = 4.0) -> None:
        super().__init__(loss_weight, reduction)
        self.alpha = finite('alpha', alpha)
        if self.alpha < 0:
            raise ValueError(f'alpha: {alpha!r}: a number of at least 0 is wanted')

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W)."""
        difference = pred - target
        along_x, along_y = _sobel(difference)
        return (1 + self.alpha * along_x.abs()) * (1 + self.alpha * along_y.abs()) * difference.abs()


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y, (B, C, H, W) each."""
    kernel = images.new_tensor(SOBEL)
    padded = F.pad(images.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode='replicate')
    gradients = F.conv2d(padded, torch.stack([kernel, kernel.T]).unsqueeze(1))
    along_x, along_y = gradients.unflatten(0, images.shape[:2]).unbind(2)
    return along_x, along_y
