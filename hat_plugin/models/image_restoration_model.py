"""The model of NAFNet's published option files."""

from __future__ import annotations

from torch import Tensor, nn

from hat_plugin.engine.options import RootOptions
from hat_plugin.engine.schema.published import NAFNetTrainOptions, NAFNetValOptions
from hat_plugin.models.grids import restore_in_grids
from hat_plugin.models.image_clean_model import ImageCleanModel


class ImageRestorationModel(ImageCleanModel):
    """`RestorationModel` under the name, and with the keys, of NAFNet's option files.

    Gradients are clipped to a norm of 0.01 unless ``train: use_grad_clip: false`` or ``grad_clip`` say otherwise.
    ``val: grids`` restores pictures in crops of ``crop_size_h`` x ``crop_size_w`` (or shares of the picture,
    ``crop_size_h_ratio``, ``crop_size_w_ratio``), ``max_minibatch`` at a time; see `models.grids`.
    """

    OPTIONS = RootOptions
    TRAIN_OPTIONS = NAFNetTrainOptions
    VAL_OPTIONS = NAFNetValOptions
    CLIPS = True

    def restore(self, net: nn.Module) -> tuple[Tensor, bool]:
        """``self.lq`` in crops where ``val: grids`` says so, else as any model does."""
        if (self.opt.get('val') or {}).get('grids'):
            return restore_in_grids(net, self.lq, self.opt)
        return super().restore(net)
