"""The learned perceptual distance, LPIPS, as a loss."""

from __future__ import annotations

from torch import Tensor

from hat_plugin.losses.picture_loss import PictureLoss
from hat_plugin.losses.pretrained import load_lpips


class LPIPSLoss(PictureLoss):
    """LPIPS 0.1: weighted squared differences of unit-length features of a classifier, averaged over the picture.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018, eq. 1.

    Args:
        loss_weight: factor.
        reduction: 'mean' or 'sum' over the pictures, or 'none' for (B, 1, 1, 1).
        net: the classifier: 'vgg' (usual for training), 'alex' (usual for measuring) or 'squeeze'.

    Raises:
        ValueError: another `net`; in `forward`, the pictures have not three channels.
        HatPluginError: the package lpips is missing, or the classifier's weights.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', net: str = 'vgg') -> None:
        super().__init__(loss_weight, reduction)
        self.network = load_lpips(net)

    def train(self, mode: bool = True) -> LPIPSLoss:
        """Stay in eval mode: in train mode the network drops features at random."""
        return super().train(False)

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, 1, 1, 1); in float32, as the network is."""
        if pred.shape[1] != 3:
            raise ValueError(f'LPIPSLoss: RGB pictures are wanted, these have {pred.shape[1]} channels')
        distances: Tensor = self.network(pred.float(), target.float(), normalize=True)
        return distances
