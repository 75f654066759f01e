"""Options of Restormer's and NAFNet's published models: ImageCleanModel and ImageRestorationModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from hat_plugin.engine.schema.report import section_of
from hat_plugin.engine.schema.sections import TrainOptions, ValOptions
from hat_plugin.engine.schema.values import Count, Flag, Positive, Section


def _no_mixup(value: Any) -> Any:
    if value is not False:
        raise ValueError(
            "NAFNet's code calls a mix-up that it does not have; write mixing_augs: {mixup: true} for Restormer's"
        )
    return value


class MixingOptions(Section):
    """Restormer's ``mixing_augs``."""

    mixup: Flag = False
    mixup_beta: Positive = 1.2
    use_identity: Flag = False


class CleanTrainOptions(TrainOptions):
    """Training keys of ImageCleanModel."""

    use_grad_clip: Flag | None = Field(None, description='clip gradients to a norm of 0.01, or of grad_clip')
    mixing_augs: MixingOptions | None = None

    @field_validator('use_grad_clip')
    @classmethod
    def _one_says_it(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is False and info.data.get('grad_clip') is not None:
            raise ValueError('grad_clip stands beside it and clips; remove one of the two')
        return value

    @classmethod
    def without_effect(cls, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Restormer's files describe a mix-up also where they switch it off."""
        mixing = section_of(section, 'mixing_augs')
        if not mixing.get('mixup'):
            for key in ('mixup_beta', 'use_identity'):
                if mixing.get(key) is not None:
                    yield f'mixing_augs: {key}', 'mixup is off'


class CleanValOptions(ValOptions):
    """Validation keys of ImageCleanModel."""

    window_size: Count | None = Field(None, description='pictures are padded to multiples of it, mirrored')
    rgb2bgr: Flag | None = None
    max_minibatch: Count | None = None

    @classmethod
    def without_effect(cls, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What Restormer's own code does not read either, or does by mistake alone."""
        if section.get('max_minibatch') is not None:
            yield 'max_minibatch', "pictures are restored one by one, as by Restormer's code, which does not read it"
        if section.get('rgb2bgr') is False:
            yield 'rgb2bgr', 'pictures are saved and measured in the colours that they have; red and blue never change'


class NAFNetTrainOptions(CleanTrainOptions):
    """Training keys of ImageRestorationModel."""

    mixup: Annotated[Literal[False], BeforeValidator(_no_mixup)] | None = None


class NAFNetValOptions(CleanValOptions):
    """Validation keys of ImageRestorationModel."""

    crop_size_h: Count | None = Field(None, description='height of a crop in pixels of the output')
    crop_size_w: Count | None = Field(None, description='width of a crop in pixels of the output')
    crop_size_h_ratio: Annotated[Positive, Field(le=1)] | None = Field(None, description="share of the output's height")
    crop_size_w_ratio: Annotated[Positive, Field(le=1)] | None = Field(None, description="share of the output's width")
    grids: Flag | None = Field(None, description='restore in crops that overlap, and take the mean where they do')
    trans_num: Count | None = None

    @field_validator('grids')
    @classmethod
    def _of_a_size(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        for side in ('h', 'w'):
            names = [f'crop_size_{side}', f'crop_size_{side}_ratio']
            if value and all(info.data.get(name) is None for name in names):
                raise ValueError(f'crops need a size; add {" or ".join(names)}')
        return value

    @classmethod
    def without_effect(cls, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What NAFNet's own code reads only with ``grids``, or not at all."""
        crops = ('crop_size_h', 'crop_size_w', 'crop_size_h_ratio', 'crop_size_w_ratio')
        for key in () if section.get('grids') else (*crops, 'max_minibatch'):
            if section.get(key) is not None:
                yield key, 'only with grids: true'
        for side in ('h', 'w') if section.get('grids') else ():
            if section.get(f'crop_size_{side}') and section.get(f'crop_size_{side}_ratio'):
                yield f'crop_size_{side}_ratio', f"crop_size_{side} goes before it, as in NAFNet's code"
        if section.get('trans_num') is not None:
            yield 'trans_num', "NAFNet's code does not read it either"
        yield from ((key, why) for key, why in super().without_effect(section) if key != 'max_minibatch')
