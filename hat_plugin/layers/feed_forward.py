"""What follows attention in a transformer block: channels are mixed, token by token or with their neighbours seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import feed_forward as training
from hat_plugin.kernels import products
from hat_plugin.kernels.fused_products import kernels_for
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.layers.lean import through
from hat_plugin.layers.linear import Linear, weights_of
from hat_plugin.layers.recipe import is_plain
from hat_plugin.layers.residual import DropPath, Kept
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

    def normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """`forward` of norm(x), of which it keeps x and what is before the GELU for gradients."""
        (y,) = through(x, norm, self.fc1)
        if self.training and self.drop.p:
            return self.drop(self.fc2(self.drop(self.act(y))))
        return through(y, self.act, self.fc2)[0]


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
        return self._gated(self.fc1(like_weights(x, self.fc1)))

    def normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """`forward` of norm(x), of which it keeps x for gradients."""
        return self._gated(through(x, norm, self.fc1)[0])

    def _gated(self, x: Tensor) -> Tensor:
        gate, value = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).chunk(2, dim=-1)
        return self.drop(self.fc2(F.gelu(gate) * value))


def add_feed_forward(
    x: Tensor, norm: nn.Module, feed_forward: Mlp | GatedFeedForward, drop_path: DropPath | None = None
) -> Tensor:
    """x + drop_path(feed_forward(norm(x))); an MLP by one kernel where there is one.

    Args:
        x: (B, H, W, dim), or windows (n, N, dim).
        norm: over the channels.
        feed_forward: what follows it.
        drop_path: leaves the branch out in training, or None.

    Returns:
        A tensor like x.
    """
    kept = Kept() if drop_path is None else drop_path.draw(x)
    if drop_path is not None and kept is None:
        return x + drop_path(feed_forward.normed(x, norm))
    assert kept is not None
    part = kept.of(x)
    added = _by_one_kernel(part, norm, feed_forward, kept.factor) if isinstance(feed_forward, Mlp) else None
    if added is None:
        added = torch.add(part, feed_forward.normed(part, norm), alpha=kept.factor)
    return kept.back(x, added)


def _by_one_kernel(x: Tensor, norm: nn.Module, mlp: Mlp, factor: float) -> Tensor | None:
    """x + factor * mlp(norm(x)) in x's type; None where no kernel is for it (in training all but the CPU's)."""
    first = Norm.of(norm)
    if first is None or type(mlp.act) is not nn.GELU or not all(map(is_plain, (mlp.fc1, mlp.act, mlp.fc2))):
        return None
    weights = first.weight, first.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
    layers = Layer(*weights_of(mlp.fc1), gelu=True), Layer(*weights_of(mlp.fc2, factor))
    image = x if x.ndim == 4 else x[None]
    inference = not (torch.is_grad_enabled() or mlp.training)
    if inference and products.takes(x, *weights):
        return products.product(image, *layers, norm=first, add=image).view(x.shape)
    if inference:
        kernels = kernels_for(x, *weights[2:])
        if kernels is not None or not torch.is_autocast_enabled('cpu'):
            return None if kernels is None else kernels.feed_forward(x, first, *layers)
    if (mlp.training and mlp.drop.p) or not training.takes(x, *weights):
        return None
    return training.feed_forward(image, first, *layers).view(x.shape)
