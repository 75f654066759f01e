"""Mix-up of a training batch, as Restormer's denoising is trained."""

from __future__ import annotations

import torch
from torch import Tensor


class MixUp:
    """Blends each pair of a batch with another one of it, all in one proportion.

    The proportion is drawn from Beta(beta, beta), once a batch. All draws come from torch's generator of the CPU, which
    checkpoints keep: a resumed run mixes as an uninterrupted one.

    Args:
        beta: of the distribution; 1.2 is published.
        use_identity: leave every other batch, at random, as it is.
    """

    def __init__(self, beta: float = 1.2, use_identity: bool = False) -> None:
        self.beta = torch.distributions.Beta(float(beta), float(beta))
        self.use_identity = use_identity

    def __call__(self, lq: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, C, h, w) and (B, C, H, W) alike."""
        if self.use_identity and torch.rand(()) < 0.5:
            return lq, gt
        share = float(self.beta.sample())
        other = torch.randperm(lq.shape[0]).to(lq.device)
        return share * lq + (1 - share) * lq[other], share * gt + (1 - share) * gt[other]
