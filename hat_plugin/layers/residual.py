"""Residual branches: what leaves them out in training, and the convolution before they are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels.operands import is_hooked, is_traced
from hat_plugin.layers.convolution import Conv2d
from hat_plugin.layers.strips import flat_steps, like_weights, map_rows, strips_of_rows


class Kept(NamedTuple):
    """The samples of a batch that keep a residual branch.

    Attributes:
        samples: their numbers, int64; None for all.
        factor: what their branch is multiplied by.
    """

    samples: Tensor | None = None
    factor: float = 1.0

    def of(self, x: Tensor) -> Tensor:
        """These samples of (B, ...)."""
        return x if self.samples is None else x.index_select(0, self.samples)

    def back(self, x: Tensor, changed: Tensor) -> Tensor:
        """x with what became of these samples in their place."""
        return changed if self.samples is None else x.index_copy(0, self.samples, changed)


class DropPath(nn.Module):
    """Leave a residual branch out, sample by sample, in training; the others make up for it.

    Args:
        drop_prob: probability with which a sample's branch is left out.

    Source: "Deep Networks with Stochastic Depth" (ECCV 2016).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        kept = self._draw(x).view(-1, *(1,) * (x.ndim - 1))
        return x * kept.to(x.dtype).div_(1.0 - self.drop_prob)

    def draw(self, x: Tensor) -> Kept | None:
        """Which samples of x, (B, ...), keep the branch, so that it is computed for these alone.

        Returns:
            None where nobody knows before it is computed: on a GPU, for which that would be a wait, or while traced.
            Then call the layer.
        """
        if self.drop_prob == 0.0 or not self.training:
            return Kept()
        if x.device.type != 'cpu' or is_traced() or is_hooked(self):
            return None
        factor = 1.0 / (1.0 - self.drop_prob)
        if isinstance(x, FakeTensor):
            return Kept(None, factor)
        kept = self._draw(x)
        if kept.all():
            return Kept(None, factor)
        if not kept.any():  # computed nevertheless: an optimiser, and DDP, wait for gradients of its weights
            return Kept(None, 0.0)
        return Kept(kept.nonzero().flatten(), factor)

    def _draw(self, x: Tensor) -> Tensor:
        """(B), bool."""
        return torch.rand(x.shape[0], device=x.device) >= self.drop_prob


def like_convolution(x: Tensor, convolution: nn.Module) -> Tensor:
    """x in the type of the weights of what `residual_convolution` made."""
    return like_weights(x, flat_steps([convolution])[0])


def add_in_strips(
    result: Tensor | None, x: Tensor, convolution: nn.Module, source: Callable[[int, int], Tensor]
) -> Tensor:
    """x + convolution(y) in inference, a strip of rows at a time.

    Args:
        result: may take the sum, (B, H, W, C); x itself, or None for a new image.
        x: (B, H, W, C).
        convolution: what `residual_convolution` made.
        source: makes the rows [top, bottom) of y, (B, bottom - top, W, C).

    Returns:
        The sum: result, or a new image like x.
    """
    height = x.shape[1]
    if isinstance(convolution, Conv2d) and map_rows(x) >= height:
        y = like_convolution(source(0, height), convolution)
        if convolution.takes_image(y):
            return convolution.over_image(y, add=x)

    def rows_of(top: int, bottom: int) -> Tensor:
        return source(top, bottom).permute(0, 3, 1, 2)

    result = torch.empty_like(x) if result is None else result
    for top, bottom, strip in strips_of_rows(flat_steps([convolution]), rows_of, x.shape[1], map_rows(x)):
        torch.add(x[:, top:bottom], strip.permute(0, 2, 3, 1), out=result[:, top:bottom])
        del strip
    return result


def residual_convolution(resi_connection: str, dim: int) -> nn.Module:
    """What stands before a residual addition, (B, C, H, W) to the same shape.

    Args:
        resi_connection: '1conv', '3conv' (a bottleneck of three, lighter; SwinIR's) or 'identity'.
        dim: number of channels.

    Raises:
        ValueError: an unknown name, or too few channels for the bottleneck.
    """
    if resi_connection == '1conv':
        return Conv2d(dim, dim, 3, padding=1)
    if resi_connection == 'identity':
        return nn.Identity()
    if resi_connection == '3conv' and dim >= 4:
        return nn.Sequential(
            Conv2d(dim, dim // 4, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            Conv2d(dim // 4, dim, 3, padding=1),
        )
    raise ValueError(
        f"resi_connection '{resi_connection}' with embed_dim {dim}: give '1conv', 'identity', "
        "or '3conv' where embed_dim is 4 or more"
    )
