"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """Move `ema` towards `net`: ``ema = decay * ema + (1 - decay) * net``, all parameters in a few fused calls.

    Buffers are copied: a running statistic is an average already, an index table must not be averaged.

    Args:
        ema: the average, same structure as `net`.
        net: the network in training, without DDP around it.
        decay: 0 copies `net`.
    """
    targets = [parameter.data for parameter in ema.parameters()]
    sources = [parameter.data for parameter in net.parameters()]
    if decay == 0:
        torch._foreach_copy_(targets, sources)
    else:
        torch._foreach_mul_(targets, decay)
        torch._foreach_add_(targets, sources, alpha=1 - decay)
    for target, source in zip(ema.buffers(), net.buffers(), strict=True):
        target.copy_(source)
