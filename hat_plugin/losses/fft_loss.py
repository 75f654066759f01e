"""L1 between spectra, beside a loss on pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from hat_plugin.losses.picture_loss import PictureLoss

NORMS = ('backward', 'ortho')


class FFTLoss(PictureLoss):
    """The absolute differences of real and imaginary parts of the 2-D Fourier transforms of pictures.

    Source: Cho et al., Rethinking Coarse-to-Fine Approach in Single Image Deblurring, ICCV 2021 (MIMO-UNet), eq. 7;
    DeepRFT's takes the modulus in the place of the two parts, and others average over the half of the spectrum that
    ``rfft2`` gives. MIMO-UNet+ weighs it 0.1 beside a loss on pixels.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over the real and imaginary parts of the whole spectrum, or 'none' for
            (B, C, H, W, 2).
        norm: 'backward' leaves the transform as it is, as published, so that the loss grows with the side of a patch;
            'ortho' divides it by sqrt(H W), so that it does not.

    Raises:
        ValueError: another `norm`.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', norm: str = 'backward') -> None:
        super().__init__(loss_weight, reduction)
        if norm not in NORMS:
            raise ValueError(f'norm: {norm!r}: backward or ortho is wanted')
        self.norm = norm

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W, 2); the transform is linear, so that one of the difference does."""
        return torch.view_as_real(torch.fft.fft2(pred - target, norm=self.norm)).abs()
