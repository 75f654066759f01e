"""What follows attention in a transformer block: channels are mixed, token by token or with their neighbours seen."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.layers.linear import Linear
from hat_plugin.layers.strips import like_weights


class Mlp(nn.Module):
    """Two linear layers with a GELU between, token by token.

    Args:
        dim: number of channels.
        hidden: number of channels in between.
        drop: probability with which a value is left out in training, after each layer.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(like_weights(x, self.fc1))))))


class GatedFeedForward(nn.Module):
    """A linear layer and a depthwise 3x3 convolution make two halves; one, through a GELU, weighs the other.

    Args:
        dim: number of channels.
        hidden: number of channels of each half.
        drop: probability with which an output is left out in training.

    Source: the gated-Dconv feed-forward network of Restormer (CVPR 2022), section 3.2.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = self.depthwise(self.fc1(like_weights(x, self.fc1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        gate, value = x.chunk(2, dim=-1)
        return self.drop(self.fc2(F.gelu(gate) * value))
