"""Two branches of a block become one: by addition, by a linear layer over both, or by a gate between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hat_plugin.layers.linear import Linear
from hat_plugin.layers.strips import like_weights


class AddFusion(nn.Module):
    """The sum of both: nothing is learned."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of (B, H, W, C) to one."""
        return a + b


class ConcatFusion(nn.Module):
    """A linear layer over the channels of both, pixel by pixel.

    Args:
        dim: number of channels of each branch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Linear(2 * dim, dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of (B, H, W, C) to one."""
        return self.proj(both(a, b, self.proj))


class GateFusion(nn.Module):
    """A share of one branch and the rest of the other, learned from both for each channel of each pixel.

    ``g * a + (1 - g) * b`` with ``g = sigmoid(linear([a, b]))``; about the mean of both at first.

    Args:
        dim: number of channels of each branch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = Linear(2 * dim, dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of (B, H, W, C) to one."""
        share = self.gate(both(a, b, self.gate)).sigmoid().to(a.dtype)
        return torch.lerp(b.to(a.dtype), a, share)


def both(a: Tensor, b: Tensor, layer: nn.Module) -> Tensor:
    """The channels of a, then those of b, (B, H, W, 2 * C), in the type of a layer's weights."""
    return torch.cat([like_weights(a, layer), like_weights(b, layer)], dim=-1)


FUSIONS = ('add', 'concat', 'gate')


def fusion(name: str, dim: int) -> nn.Module:
    """The module that fuses two branches of `dim` channels.

    Args:
        name: 'add', 'concat' or 'gate'.
        dim: number of channels.

    Raises:
        ValueError: an unknown name.
    """
    if name == 'add':
        return AddFusion()
    if name == 'concat':
        return ConcatFusion(dim)
    if name == 'gate':
        return GateFusion(dim)
    raise ValueError(f"fusion '{name}' is unknown: give one of {', '.join(FUSIONS)}")
