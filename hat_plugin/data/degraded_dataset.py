"""Clean pictures, degraded as they are read: what GaussianDenoisingDataset and JPEGDataset share."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch.utils.data import Dataset

from hat_plugin.data.augment import finish, pad_to, random_corner, random_flips
from hat_plugin.data.options import PictureOptions, checked_options
from hat_plugin.data.seeded import SmallImageError
from hat_plugin.data.sources import DecodedPicture, Picture, listed_names, open_source, whole
from hat_plugin.engine.options import Count, Flag, LoaderOptions, Text


def _bounds(value: Any) -> tuple[float, float]:
    ends = list(value) if isinstance(value, list | tuple) else [value, value]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends)
    if not numbers or len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError('a number is wanted, or a range [low, high]')
    return float(ends[0]), float(ends[1])


Bounds = Annotated[tuple[float, float], BeforeValidator(_bounds)]
"""A strength in an option file: a number, kept as (number, number), or [low, high]."""


class DegradedOptions(PictureOptions):
    """Options of data sets that degrade clean pictures."""

    dataroot_gt: Text = Field(description='folder or .lmdb of clean pictures')
    gt_size: Count | None = Field(default=None, validate_default=True, description='side of a training patch')
    use_hflip: Flag = Field(default=True, description='mirror at random (training)')
    use_rot: Flag = Field(default=True, description='turn by multiples of 90 degrees at random (training)')
    small_images: Literal['error', 'pad', 'skip'] = Field(
        default='error', description='what to do with a picture smaller than gt_size (training)'
    )
    gray: Flag = Field(default=False, description='one channel: colour becomes gray before it is degraded')

    @field_validator('scale')
    @classmethod
    def _same_size(cls, value: int) -> int:
        if value != 1:
            raise ValueError('pictures keep their size here; write scale: 1')
        return value

    @field_validator('channels', 'color')
    @classmethod
    def _before_and_not_after(cls, value: Any) -> Any:
        if value != 3:
            raise ValueError('write gray: true; pictures turn gray before they are degraded, not after')
        return value

    @field_validator('gt_size')
    @classmethod
    def _needed_in_training(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get('phase') == 'train':
            raise ValueError('training needs the side of a patch, 128 say')
        return value


def check_bounds(bounds: tuple[float, float], info: ValidationInfo, lowest: float, highest: float) -> None:
    """Raises ValueError where a strength leaves [lowest, highest], or is a range outside training."""
    if not lowest <= bounds[0] <= bounds[1] <= highest:
        raise ValueError(f'values from {lowest:g} to {highest:g} are wanted')
    if info.data.get('phase') != 'train' and bounds[0] != bounds[1]:
        raise ValueError('a range is for training; validation wants one number, so that it can be repeated')


class DegradedDataset(Dataset[dict[str, Any]]):
    """Reads clean pictures as the ground truth and makes the LQ of the same size on the fly.

    In training a patch of whole-number pixels is cut, turned, then degraded with a generator of its own, seeded from
    numpy's global one, which this plugin's loaders seed from (seed, sample number), whatever the workers. Elsewhere the
    whole picture is degraded with ``RandomState(0)``, the same each time; the process's generators are left alone.

    Args:
        opt: the data set's block; see `OPTIONS`.

    Raises:
        OptionsError: a key is unknown or wrong.
        DataError: the folder or a listed picture is missing.
    """

    OPTIONS: ClassVar[type[LoaderOptions]] = DegradedOptions
    # Channels that are read where gray is wanted: 1 is OpenCV's BT.601 gray, None is what is stored (see `clean`).
    GRAY_CHANNELS: ClassVar[Literal[1] | None] = 1
    options: DegradedOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.options = options = self.read_options(opt)
        self.training = options.phase == 'train'
        reading = options.model_copy(update={'channels': self.GRAY_CHANNELS if options.gray else 3})
        self.source = open_source(options.dataroot_gt, reading)
        self.names = listed_names(self.source, options.meta_info_file)
        self._check_known_sizes()
        self.paths = [self.source.path(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pair as float tensors (C, H, W), ``lq`` and ``gt``, and the path as ``lq_path`` and ``gt_path``.

        Raises:
            DataError: the picture is damaged, or (SmallImageError) smaller than the patch.
        """
        name = self.names[index]
        picture = self.source.open(name)
        if self.training:
            lq, gt = self.training_pair(picture, name, np.random.RandomState(np.random.randint(2**32, dtype=np.uint32)))
        else:
            gt = self.clean(whole(picture), name)
            lq = self.degrade(gt, np.random.RandomState(0))
        path = self.paths[index]
        return {'lq': finish(lq, self.options), 'gt': finish(gt, self.options), 'lq_path': path, 'gt_path': path}

    @property
    def gt_size(self) -> int:
        """Side of a training patch. It is looked up for each sample: training by stages changes it on the way."""
        return int(self.opt.get('gt_size') or 0)

    def read_options(self, opt: dict[str, Any]) -> Any:
        """The checked options of a block, an instance of `OPTIONS`."""
        return checked_options(self.OPTIONS, opt)

    def clean(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """What of a picture's or patch's pixels, as the source gives them, is the ground truth."""
        return pixels

    def degrade(self, clean: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """The LQ, (H, W, C), of a ground truth (H, W, C), uint8 or uint16: whole numbers, or float32 in units of 1."""
        raise NotImplementedError

    def training_pair(
        self, picture: Picture, name: str, random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patches of LQ and ground truth, (gt_size, gt_size, C)."""
        gt = self.clean(self.patch(picture, name, self.gt_size), name)
        return self.degrade(gt, random), gt

    def patch(self, picture: Picture, name: str, side: int) -> np.ndarray:
        """A random square of a picture, turned; it may be a view, not to be written to."""
        options = self.options
        if min(picture.size) < side:
            if options.small_images != 'pad':
                raise SmallImageError(self._small(name, picture.size))
            picture = DecodedPicture(pad_to(whole(picture), side, side))
        top, left = random_corner(*picture.size, side)
        crop = picture.crop(top, left, side, side)
        return random_flips([crop], hflip=options.use_hflip, rotate=options.use_rot)[0]

    def _small(self, name: str, size: tuple[int, int]) -> str:
        return (
            f'{self.source.place(name)}: {size[0]}x{size[1]} is smaller than gt_size {self.gt_size}. Set '
            'small_images: pad or skip, or lower gt_size'
        )

    def _check_known_sizes(self) -> None:
        """Find a picture that is too small before training does, where sizes are known without opening any."""
        if not self.training or self.options.small_images != 'error':
            return
        sizes = self.source.known_sizes()
        for name in self.names:
            if name in sizes and min(sizes[name]) < self.gt_size:
                raise SmallImageError(self._small(name, sizes[name]))
