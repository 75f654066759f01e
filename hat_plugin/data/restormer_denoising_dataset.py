"""The data set of Restormer's option files for Gaussian denoising, under its own name: Dataset_GaussianDenoising."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from hat_plugin.data.gaussian_denoising_dataset import GaussianDenoisingDataset, GaussianDenoisingOptions
from hat_plugin.data.options import checked_options
from hat_plugin.engine.options import BackendOptions, Count, Flag, LoaderOptions, Text


def _levels(value: Any) -> tuple[float, ...]:
    levels = value if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
    if not levels or not numbers or not all(0 <= level <= 255 for level in levels):
        raise ValueError('a number from 0 to 255 is wanted, or a list of them')
    return tuple(float(level) for level in levels)


Levels = Annotated[tuple[float, ...], BeforeValidator(_levels)]
"""Standard deviations in units of 1 / 255: a number, kept as a tuple of one, or a list."""


class RestormerDenoisingOptions(LoaderOptions):
    """Options of Dataset_GaussianDenoising, as Restormer's published files write them."""

    dataroot_gt: Text = Field(description='folder or .lmdb of clean pictures')
    dataroot_lq: Literal['none'] | None = Field(default=None, description="'none': the LQ is made from dataroot_gt")
    filename_tmpl: Literal['{}'] = Field(default='{}', description='in published files; there is no name to make')
    io_backend: BackendOptions = Field(default=BackendOptions(type='disk'), description='type: disk or lmdb')
    meta_info_file: Text | None = Field(default=None, description='a list of file names, one a line')
    in_ch: Literal[1, 3] = Field(description='1: colour becomes gray; 3: gray is repeated')
    geometric_augs: Flag = Field(default=True, description='mirror and turn at random (training)')
    gt_size: Count | None = Field(default=None, validate_default=True, description='side of a training patch')
    sigma_type: Literal['constant', 'random', 'choice'] | None = Field(
        default=None, validate_default=True, description='how sigma_range is meant (training)'
    )
    sigma_range: Levels | None = Field(
        default=None, validate_default=True, description='a level (constant), [low, high] (random), or a list (choice)'
    )
    sigma_test: Levels | None = Field(default=None, validate_default=True, description='the level in validation')
    small_images: Literal['pad'] = Field(default='pad', description='small pictures are mirrored, as Restormer does')

    @field_validator('gt_size', 'sigma_type', 'sigma_range', 'sigma_test')
    @classmethod
    def _needed(cls, value: Any, info: ValidationInfo) -> Any:
        training = info.data.get('phase') == 'train'
        if value is None and training != (info.field_name == 'sigma_test'):
            raise ValueError('training needs it' if training else 'validation needs it')
        return value

    @field_validator('sigma_range', 'sigma_test')
    @classmethod
    def _as_many_as_are_meant(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        kind = info.data.get('sigma_type') if info.field_name == 'sigma_range' else 'constant'
        if value is not None and kind == 'constant' and len(value) != 1:
            raise ValueError('one number is wanted')
        if value is not None and kind == 'random' and (len(value) != 2 or value[0] > value[1]):
            raise ValueError('[low, high] is wanted (sigma_type: random)')
        return value


class Dataset_GaussianDenoising(GaussianDenoisingDataset):
    """GaussianDenoisingDataset with the keys of Restormer's option files.

    Small pictures are mirrored until a patch can be cut. The noise of validation is the published one; that of training
    is drawn from another generator.

    Args:
        opt: the data set's block; see RestormerDenoisingOptions.

    Raises:
        OptionsError: a key is unknown or wrong.
        DataError: the folder or a listed picture is missing.
    """

    OPTIONS: ClassVar[type[LoaderOptions]] = RestormerDenoisingOptions

    def read_options(self, opt: dict[str, Any]) -> GaussianDenoisingOptions:
        """The same in this plugin's words."""
        published = checked_options(RestormerDenoisingOptions, opt)
        levels = published.sigma_range if published.phase == 'train' else published.sigma_test
        assert levels  # checked above
        self.choices = levels if published.sigma_type == 'choice' and published.phase == 'train' else None
        same = GaussianDenoisingOptions.model_fields.keys() & RestormerDenoisingOptions.model_fields.keys()
        return GaussianDenoisingOptions.model_validate(
            {
                **published.model_dump(include=same),
                'sigma': [min(levels), max(levels)],
                'gray': published.in_ch == 1,
                'use_hflip': published.geometric_augs,
                'use_rot': published.geometric_augs,
            }
        )

    def sigma(self, random: np.random.RandomState) -> float:
        """The noise level of a picture."""
        return float(random.choice(self.choices)) if self.choices else super().sigma(random)
