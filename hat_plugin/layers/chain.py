"""Blocks one after the other, of which some may recompute in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Chain(nn.Sequential):
    """`torch.nn.Sequential`, its names and weights, with gradient checkpointing.

    Args:
        blocks: each takes what the one before it made.
        checkpointed: how many of the first blocks recompute their activations in the backward pass.
    """

    def __init__(self, blocks: Iterable[nn.Module], checkpointed: int = 0) -> None:
        super().__init__(*blocks)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        """What the last block makes of it."""
        for number, block in enumerate(self):
            if number < self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x
