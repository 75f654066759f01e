"""Ground truth alone, its low resolution made on the fly: ImageNetPairedDataset, for pre-training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from hat_plugin.data.augment import finish, random_corner, random_flips
from hat_plugin.data.bicubic import imresize, mod_crop
from hat_plugin.data.options import PictureOptions, checked_options
from hat_plugin.data.sources import listed_names, open_source, whole
from hat_plugin.engine.options import Count, Flag, Text
from hat_plugin.errors import DataError

# The bicubic kernel, stretched by the scale, reaches less than two LQ pixels beyond an LQ pixel's own centre.
_MARGIN = 2


class ImageNetPairedOptions(PictureOptions):
    """Options of ImageNetPairedDataset, as HAT's published option files write them."""

    dataroot_gt: Text = Field(description='folder or .lmdb of pictures')
    dataroot_lq: Text | None = Field(default=None, description='the same as dataroot_gt, or left out')
    gt_size: Count = Field(description='side of a training patch; smaller pictures are enlarged to it')
    use_hflip: Flag = Field(default=True, description='mirror at random (training)')
    use_rot: Flag = Field(default=True, description='turn by multiples of 90 degrees at random (training)')
    alpha: Literal['error', 'drop'] = Field(default='drop', description='what to do with transparent pixels')
    round_lq: Flag = Field(default=False, description='round the LQ to 8 bits, as a file of it would be')


class ImageNetPairedDataset(Dataset[dict[str, Any]]):
    """Makes (LQ, GT) pairs from pictures by MATLAB's bicubic, as HAT's data set of this name does.

    A picture is cut to a multiple of the scale, enlarged to gt_size (bilinear) where it is smaller, and reduced. In
    training only the patch and a margin around it are reduced, which gives the same pixels as reducing all of it. Like
    the published data set's, the LQ is neither rounded nor clipped unless ``round_lq`` says so.

    Args:
        opt: the data set's block; see ImageNetPairedOptions.

    Raises:
        OptionsError: a key is unknown or of the wrong type.
        DataError: the folder or the meta_info_file is missing or empty; the sizes do not fit together.
    """

    OPTIONS: ClassVar[type[ImageNetPairedOptions]] = ImageNetPairedOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.options = options = checked_options(self.OPTIONS, opt)
        self.scale = options.scale
        self.training = options.phase == 'train'
        if options.gt_size % self.scale:
            raise DataError(f'gt_size: {options.gt_size} is not a multiple of the scale, {self.scale}')
        if options.dataroot_lq not in (None, options.dataroot_gt):
            raise DataError(
                f'dataroot_lq: {options.dataroot_lq}: the LQ is made from dataroot_gt; leave dataroot_lq out, or take '
                'PairedCropDataset to read it'
            )
        self.source = open_source(options.dataroot_gt, options)
        self.names = listed_names(self.source, options.meta_info_file, look_for=1)
        self.paths = [self.source.path(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pair as float tensors (C, H, W): ``lq``, ``gt``, and the path as ``lq_path`` and ``gt_path``.

        Raises:
            DataError: the picture is damaged.
        """
        gt = self._ground_truth(whole(self.source.open(self.names[index])), index)
        if self.training:
            side = self.gt_size // self.scale
            top, left = random_corner(gt.shape[0] // self.scale, gt.shape[1] // self.scale, side)
            lq, gt = self._reduced_patch(gt, top, left, side)
            lq, gt = random_flips([lq, gt], hflip=self.options.use_hflip, rotate=self.options.use_rot)
        else:
            lq = self._reduced(gt)
        path = self.paths[index]
        return {'lq': finish(lq, self.options), 'gt': finish(gt, self.options), 'lq_path': path, 'gt_path': path}

    @property
    def gt_size(self) -> int:
        """Side of a patch. It is looked up for each sample: training by stages changes it on the way."""
        return int(self.opt['gt_size'])

    def _ground_truth(self, array: np.ndarray, index: int) -> np.ndarray:
        """Cut to a multiple of the scale; enlarged, and then float32 in [0, 1], where it is smaller than gt_size."""
        try:
            array = mod_crop(array, self.scale)
        except DataError as error:
            raise DataError(f'{self.source.place(self.names[index])}: {error}') from error
        height, width = (max(side, self.gt_size) for side in array.shape[:2])
        if (height, width) == array.shape[:2]:
            return array
        values = array.astype(np.float32) / np.iinfo(array.dtype).max
        enlarged = cv2.resize(values, (width, height))
        return enlarged if enlarged.ndim == 3 else enlarged[..., None]

    def _reduced_patch(self, gt: np.ndarray, top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """LQ and GT patch with the LQ's corner at (top, left).

        Where the margin meets the picture's border, both end there, so that both are mirrored at the same place.
        """
        scale = self.scale
        first = [max(0, corner - _MARGIN) for corner in (top, left)]
        last = [min(gt.shape[axis] // scale, (top, left)[axis] + side + _MARGIN) for axis in (0, 1)]
        region = self._reduced(gt[first[0] * scale : last[0] * scale, first[1] * scale : last[1] * scale])
        row, column = top - first[0], left - first[1]
        patch = gt[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        return region[row : row + side, column : column + side], patch

    def _reduced(self, gt: np.ndarray) -> np.ndarray:
        """The picture at 1 / scale, float32 in about [0, 1]."""
        values = gt if gt.dtype == np.float32 else gt.astype(np.float32) / np.iinfo(gt.dtype).max
        lq = imresize(values, 1 / self.scale)
        if self.options.round_lq:
            lq = np.clip(np.round(lq * 255), 0, 255) / np.float32(255)
        return lq
