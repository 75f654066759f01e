"""What all losses here have in common: the checks, the precision, the weight and the reduction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REDUCTIONS = ('mean', 'sum', 'none')


class PictureLoss(nn.Module):
    """A loss of two batches of pictures; an heir says in `compare` what is reduced and weighted here.

    It is computed in float32 at least, under autocast too: squares of small differences vanish in half precision.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over what `compare` gives, or 'none'.

    Raises:
        ValueError: one of them is of no use.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction: {reduction!r}: mean, sum or none is wanted')
        self.loss_weight = finite('loss_weight', loss_weight)
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The weighted loss.

        Args:
            pred, target: (B, C, H, W), in [0, 1].

        Returns:
            One number, or with reduction 'none' what `compare` gives.

        Raises:
            ValueError: they are no two batches of one shape, or too small or of too few channels for this loss.
        """
        if pred.ndim != 4 or pred.shape != target.shape:
            shapes = f'{tuple(pred.shape)} and {tuple(target.shape)}'
            raise ValueError(f'{type(self).__name__}: {shapes}: two batches (B, C, H, W) of one shape are wanted')
        dtype = torch.promote_types(pred.dtype, torch.float32)
        with torch.autocast(pred.device.type, enabled=False):
            compared = self.compare(pred.to(dtype), target.to(dtype))
            if self.reduction == 'mean':
                compared = compared.mean()
            elif self.reduction == 'sum':
                compared = compared.sum()
            return self.loss_weight * compared

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss before reduction and weight; heirs say its shape."""
        raise NotImplementedError


def finite(name: str, value: float, *, above: float = -math.inf) -> float:
    """`value`, if it is a finite number above a bound.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and value > above:
        return float(value)
    bound = '' if above == -math.inf else f' above {above:g}'
    raise ValueError(f'{name}: {value!r}: a finite number{bound} is wanted')


def separable(images: Tensor, taps: Tensor) -> Tensor:
    """Correlate each channel with the outer product of `taps` with itself, without padding.

    Args:
        images: (B, C, H, W).
        taps: (K,).

    Returns:
        (B, C, H - K + 1, W - K + 1).
    """
    channels = images.shape[1]
    column = taps.to(images).view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    # Channel by channel as groups: batches of single channels take three times as long on a CPU.
    return F.conv2d(F.conv2d(images, column, groups=channels), column.transpose(2, 3), groups=channels)
