"""What follows attention in a transformer block: channels are mixed, token by token or with their neighbours seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import products
from hat_plugin.kernels.fused_products import kernels_for
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


def add_feed_forward(x: Tensor, norm: nn.Module, feed_forward: nn.Module, drop_path: nn.Module | None = None) -> Tensor:
    """x + drop_path(feed_forward(norm(x))); an MLP in inference by one kernel where there is one.

    Args:
        x: (B, H, W, dim), or windows (n, N, dim).
        norm: over the channels.
        feed_forward: `Mlp` or `GatedFeedForward`.
        drop_path: leaves the branch out in training, or None.

    Returns:
        A tensor like x.
    """
    if isinstance(feed_forward, Mlp) and isinstance(norm, nn.LayerNorm) and norm.bias is not None:
        up, down = feed_forward.fc1, feed_forward.fc2
        inference = not (torch.is_grad_enabled() or feed_forward.training)
        layers = products.Layer(up.weight, up.bias, gelu=True), products.Layer(down.weight, down.bias)
        first = products.Norm(norm.weight, norm.bias, norm.eps)
        if inference and products.takes(x, norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias):
            image = x if x.ndim == 4 else x[None]
            return products.product(image, *layers, norm=first, add=image).view(x.shape)
        kernels = kernels_for(x, up.weight, up.bias, down.weight, down.bias) if inference else None
        if kernels is not None:
            result: Tensor = kernels.feed_forward(x, first, *layers)
            return result
    y = feed_forward(norm(x))
    return x + (y if drop_path is None else drop_path(y))
