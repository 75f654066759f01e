"""The data set of Restormer's option files for pairs, under its own name: Dataset_PairedImage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from hat_plugin.data.paired_crop_dataset import PairedCropDataset, PairedCropOptions
from hat_plugin.engine.options import Flag


class RestormerPairedOptions(PairedCropOptions):
    """Options of Dataset_PairedImage: PairedCropDataset's, and Restormer's word for flips and turns."""

    geometric_augs: Flag = Field(default=True, description='mirror and turn at random: use_hflip and use_rot at once')
    small_images: Literal['error', 'pad', 'skip'] = Field(
        default='pad', description='what to do with a picture smaller than gt_size (training)'
    )

    @model_validator(mode='before')
    @classmethod
    def _both_at_once(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get('geometric_augs'), bool):
            return values
        return {'use_hflip': values['geometric_augs'], 'use_rot': values['geometric_augs'], **values}


class Dataset_PairedImage(PairedCropDataset):
    """PairedCropDataset with the keys and defaults of Restormer's data set of this name.

    Small pictures are mirrored at their bottom and right. A patch is turned into one of its eight positions, each as
    likely. Restormer's loop cuts the patches of early stages out of one of the last stage's size and throws some of
    the batch away; here just what is needed is read, and patches lie anywhere in a picture.

    Args:
        opt: the data set's block; see RestormerPairedOptions.

    Raises:
        OptionsError: a key is unknown or of the wrong type.
        DataError: folders are missing or do not fit together; the first picture at fault is named.
    """

    OPTIONS = RestormerPairedOptions
