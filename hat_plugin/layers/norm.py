"""Layer normalisation over the channels of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Give each pixel's channels mean 0 and variance 1, then a learned scale and offset.

    Args:
        channels: of the feature map.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, channels last in memory."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class BiasFreeNorm(nn.Module):
    """Give each pixel's channels variance 1 and leave their mean, scaled with them; then a learned scale.

    A network of such normalisations and convolutions without bias can do at any noise level what it learned at one.

    Args:
        channels: of the feature map.
        eps: added to the variance.

    Source: "Robust and Interpretable Blind Image Denoising via Bias-Free Convolutional Neural Networks" (ICLR 2020).
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        wide = torch.promote_types(x.dtype, torch.float32)  # squares of half precision overflow
        variance = x.to(wide).var(1, correction=0, keepdim=True)
        return x * (variance + self.eps).rsqrt().to(x.dtype) * self.weight.view(-1, 1, 1)
