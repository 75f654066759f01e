"""A squared difference of spectra that looks at the frequencies that are hard to restore."""

from __future__ import annotations

import torch
from torch import Tensor

from hat_plugin.losses.picture_loss import PictureLoss, finite


class FocalFrequencyLoss(PictureLoss):
    """w |F(pred) - F(target)|², with the unitary Fourier transform F of each patch and w = |F(pred) - F(target)|^alpha.

    The weights w are divided by their largest, and pass no gradient.

    Source: Jiang et al., Focal Frequency Loss for Image Reconstruction and Synthesis, ICCV 2021, eq. 8 to 10.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over frequencies, or 'none' for (B, C, P, P, H / P, W / P) with P = patch_factor.
        alpha: how much harder frequencies count; 0 makes it a mean squared error.
        patch_factor: transform patches, so many along each side, in the place of whole pictures.
        log_matrix: take log(1 + w) for w.
        batch_matrix: divide by the largest w of the batch, not of each patch and channel. It depends on how
            total_batch_size splits a batch.

    Raises:
        ValueError: alpha is negative or patch_factor below 1; in `forward`, it does not divide the sides.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        alpha: float = 1.0,
        patch_factor: int = 1,
        log_matrix: bool = False,
        batch_matrix: bool = False,
    ) -> None:
        super().__init__(loss_weight, reduction)
        self.alpha = finite('alpha', alpha)
        if self.alpha < 0:
            raise ValueError(f'alpha: {alpha!r}: a number of at least 0 is wanted')
        if isinstance(patch_factor, bool) or not isinstance(patch_factor, int) or patch_factor < 1:
            raise ValueError(f'patch_factor: {patch_factor!r}: a whole number of at least 1 is wanted')
        self.patch_factor, self.log_matrix, self.batch_matrix = patch_factor, log_matrix, batch_matrix

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, P, P, H / P, W / P)."""
        spectrum = torch.fft.fft2(self._patches(pred - target), norm='ortho')
        squared = torch.view_as_real(spectrum).square().sum(-1)
        return self._weights(squared.detach()) * squared

    def _patches(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        count = self.patch_factor
        if height % count or width % count:
            raise ValueError(f'patch_factor: {count} does not divide the sides of pictures of {height}x{width}')
        return images.unflatten(2, (count, -1)).unflatten(4, (count, -1)).transpose(3, 4)

    def _weights(self, squared: Tensor) -> Tensor:
        weights = squared.sqrt() ** self.alpha
        if self.log_matrix:
            weights = weights.log1p()
        largest = weights.max() if self.batch_matrix else weights.amax(dim=(-2, -1), keepdim=True)
        return weights / largest.clamp(min=torch.finfo(weights.dtype).tiny)  # equal patches: 0 / tiny
