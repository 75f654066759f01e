"""Means over a picture's surroundings in the place of means over the whole picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalAveragePool(nn.Module):
    """The mean of a window around each pixel in evaluation; in training, and where the window holds all, one mean.

    A network that learned from patches meets the mean of a whole picture only when it is tested; the mean of a window
    about as large as the patches is what it knows.

    Args:
        kernel_size: height and width of the window in pixels, 1 or more. Near the border, where no whole window fits,
            stands what the nearest pixel with a whole one has.

    Source: the test-time local converter of "Improving Image Restoration by Revisiting Global Information Aggregation"
    (TLC, ECCV 2022).
    """

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, or to (B, C, 1, 1) where there is one mean."""
        height, width = x.shape[2:]
        high, wide = (min(pair) for pair in zip(self.kernel_size, (height, width), strict=True))
        if self.training or (high, wide) == (height, width):
            return F.adaptive_avg_pool2d(x, 1)
        means = _moving_mean(_moving_mean(x, wide, -1), high, -2).to(x.dtype)
        down, right = high - 1, wide - 1  # rows and columns without a whole window; the odd one at bottom and right
        return F.pad(means, (right // 2, right - right // 2, down // 2, down - down // 2), mode='replicate')

    def extra_repr(self) -> str:
        return f'kernel_size={self.kernel_size}'


def _moving_mean(x: Tensor, length: int, dim: int) -> Tensor:
    """The means of all stretches of a length along a dimension, by differences of running sums.

    One dimension after the other: sums over an area, as published, would lose more digits, being larger.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = F.pad(x.transpose(dim, -1).cumsum(-1, dtype=wide), (1, 0))
    return ((sums[..., length:] - sums[..., :-length]) / length).transpose(dim, -1)
