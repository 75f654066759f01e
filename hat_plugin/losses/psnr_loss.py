"""The loss that NAFNet is trained with: PSNR, the other way up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hat_plugin.losses.picture_loss import PictureLoss

DECIBEL = 10 / math.log(10)
# Luma of BT.601 in [16, 235]; its offset of 16 cancels in a difference.
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


class PSNRLoss(PictureLoss):
    """10 log10(MSE + 1e-8) of each picture, which is minus its PSNR in dB, down to -80.

    Source: Chen et al., Simple Baselines for Image Restoration, ECCV 2022 (NAFNet), and its code.

    Args:
        loss_weight: factor.
        reduction: 'mean' (NAFNet's) or 'sum' over the pictures, or 'none' for (B,).
        toY: compare luma alone; the pictures are RGB.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', toY: bool = False) -> None:
        super().__init__(loss_weight, reduction)
        self.toY = toY

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B,), in dB."""
        difference = pred - target
        if self.toY:
            if difference.shape[1] != 3:
                raise ValueError(f'toY: pictures of 3 channels are wanted, these have {difference.shape[1]}')
            difference = torch.einsum('bchw,c->bhw', difference, difference.new_tensor(LUMA)).unsqueeze(1)
        return DECIBEL * torch.log(difference.square().mean(dim=(1, 2, 3)) + 1e-8)
