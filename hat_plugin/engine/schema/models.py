"""Which options a model reads: said by its class, or for BasicSR's own models, which say nothing, in a table here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from hat_plugin.engine.schema.classes import registered
from hat_plugin.engine.schema.sections import RootOptions, TrainOptions, ValOptions
from hat_plugin.engine.schema.values import Count, CountOrZero, Flag, Float, Int, Probability, Range


class RealDegradationOptions(RootOptions):
    """Top level of the models that make their training data by the Real-ESRGAN degradation."""

    gt_usm: Flag | None = None
    l1_gt_usm: Flag | None = None
    percep_gt_usm: Flag | None = None
    gan_gt_usm: Flag | None = None
    high_order_degradation: Flag | None = None
    resize_prob: Annotated[list[Probability], Field(min_length=3, max_length=3)] | None = None
    resize_range: Range | None = None
    gaussian_noise_prob: Probability | None = None
    noise_range: Range | None = None
    poisson_scale_range: Range | None = None
    gray_noise_prob: Probability | None = None
    jpeg_range: Range | None = None
    second_blur_prob: Probability | None = None
    resize_prob2: Annotated[list[Probability], Field(min_length=3, max_length=3)] | None = None
    resize_range2: Range | None = None
    gaussian_noise_prob2: Probability | None = None
    noise_range2: Range | None = None
    poisson_scale_range2: Range | None = None
    gray_noise_prob2: Probability | None = None
    jpeg_range2: Range | None = None
    gt_size: Count | None = None
    queue_size: Count | None = None


class VideoTrainOptions(TrainOptions):
    """Training keys of BasicSR's video, face and StyleGAN2 models."""

    tsa_iter: CountOrZero | None = None
    dcn_lr_mul: Float | None = None
    flow_lr_mul: Float | None = None
    lr_flow: Float | None = None
    fix_flow: Int | None = None
    r1_reg_weight: Float | None = None
    path_reg_weight: Float | None = None
    path_batch_shrink: Count | None = None
    net_g_reg_every: Count | None = None
    net_d_reg_every: Count | None = None
    mixing_prob: Probability | None = None


class VideoValOptions(ValOptions):
    """Validation keys of BasicSR's video and StyleGAN2 models."""

    flip_seq: Flag | None = None
    center_frame_only: Flag | None = None
    num_val_samples: Count | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model reads.

    Attributes:
        top_level: the keys of the top level.
        train: the keys of the ``train`` section.
        val: the keys of the ``val`` section.
        adversarial: whether it trains against a discriminator.
        extended: whether it reads what this plugin adds to BasicSR's options.
        foreign: whether it may read more than all this; its file is then searched for slips only.
    """

    top_level: type[RootOptions] = RootOptions
    train: type[TrainOptions] = TrainOptions
    val: type[ValOptions] = ValOptions
    adversarial: bool = False
    extended: bool = True
    foreign: bool = False


_FOREIGN = ModelFacts(RealDegradationOptions, VideoTrainOptions, VideoValOptions, foreign=True)
_PLAIN = ModelFacts(extended=False)
_GAN = ModelFacts(adversarial=True, extended=False)
_BASICSR = {
    'SRModel': _PLAIN,
    'SwinIRModel': _PLAIN,
    'SRGANModel': _GAN,
    'ESRGANModel': _GAN,
    'RealESRNetModel': ModelFacts(RealDegradationOptions, extended=False),
    'RealESRGANModel': ModelFacts(RealDegradationOptions, adversarial=True, extended=False),
}


def model_facts(name: Any) -> ModelFacts:
    """What the model of that name reads.

    A model class says it by ``OPTIONS``, the pydantic model of the top level, and by ``TRAIN_OPTIONS``, ``VAL_OPTIONS``
    and ``ADVERSARIAL`` where they are others than usual. It must say so itself: a class that inherits them may read
    more.

    Args:
        name: what stands after ``model_type:``; where that is no text, another line of the report tells.
    """
    if not isinstance(name, str) or not name:
        return ModelFacts()
    model = registered('MODEL_REGISTRY', name)
    if model is None:
        return _FOREIGN
    if 'OPTIONS' in vars(model):
        sections = getattr(model, 'TRAIN_OPTIONS', TrainOptions), getattr(model, 'VAL_OPTIONS', ValOptions)
        return ModelFacts(model.OPTIONS, *sections, adversarial=getattr(model, 'ADVERSARIAL', False))
    return _BASICSR.get(model.__name__, _FOREIGN) if model.__module__.startswith('basicsr.') else _FOREIGN
