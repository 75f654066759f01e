"""The model of Restormer's published option files."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hat_plugin.engine.options import RootOptions
from hat_plugin.engine.schema.published import CleanTrainOptions, CleanValOptions
from hat_plugin.engine.schema.sections import TrainOptions, ValOptions
from hat_plugin.models.mixup import MixUp
from hat_plugin.models.restoration_model import RestorationModel

GRAD_CLIP = 0.01  # the norm that use_grad_clip stands for, in Restormer's and in NAFNet's code


class ImageCleanModel(RestorationModel):
    """`RestorationModel` under the name, and with the keys, of Restormer's option files.

    ``train: use_grad_clip`` clips gradients to a norm of 0.01 (or of ``grad_clip``, where that is given), ``train:
    mixing_augs: {mixup, mixup_beta, use_identity}`` mixes each micro-batch, which is what a device of the published
    training saw; ``val: window_size`` pads pictures. Stages are the training set's affair; see `engine.stages`.
    """

    OPTIONS = RootOptions
    TRAIN_OPTIONS: ClassVar[type[TrainOptions]] = CleanTrainOptions
    VAL_OPTIONS: ClassVar[type[ValOptions]] = CleanValOptions
    CLIPS: ClassVar[bool] = False  # where use_grad_clip is not given

    def init_training_settings(self) -> None:
        """BasicSR's hook: clipping and mixing, too."""
        super().init_training_settings()
        train_opt = self.opt['train']
        if self.grad_clip is None and train_opt.get('use_grad_clip', self.CLIPS):
            self.grad_clip = GRAD_CLIP
        mixing = train_opt.get('mixing_augs') or {}
        self.mixup: MixUp | None = None
        if mixing.get('mixup'):
            self.mixup = MixUp(mixing.get('mixup_beta') or 1.2, bool(mixing.get('use_identity')))

    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batch in parts, each mixed for itself."""
        parts = super().micro_batches()
        return [self.mixup(lq, gt) for lq, gt in parts] if self.mixup is not None else parts
