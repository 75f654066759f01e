"""Pairs of pictures for training and validation, read by crops: PairedCropDataset."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from hat_plugin.data.augment import finish, pad_to, random_corner, random_flips
from hat_plugin.data.options import PictureOptions, checked_options
from hat_plugin.data.seeded import SmallImageError
from hat_plugin.data.sources import (
    DecodedPicture,
    FolderSource,
    Picture,
    Size,
    open_source,
    read_meta_info_file,
    select_names,
    whole,
)
from hat_plugin.engine.options import Count, Flag, Text
from hat_plugin.errors import DataError

logger = logging.getLogger(__name__)


class PairedCropOptions(PictureOptions):
    """Options of PairedCropDataset: those of BasicSR's PairedImageDataset, and ours."""

    dataroot_gt: Text = Field(description='folder or .lmdb of the ground truth')
    dataroot_lq: Text = Field(description='folder or .lmdb of the degraded pictures')
    filename_tmpl: Text = Field(default='{}', description="an LQ's name from its GT's, without suffix: '{}x4'")
    gt_size: Count | None = Field(default=None, description='side of a training patch of the ground truth')
    use_hflip: Flag = Field(default=True, description='mirror at random (training)')
    use_rot: Flag = Field(default=True, description='turn by multiples of 90 degrees at random (training)')
    small_images: Literal['error', 'pad', 'skip'] = Field(
        default='error', description='what to do with a picture smaller than gt_size (training)'
    )


class PairedCropDataset(Dataset[dict[str, Any]]):
    """Reads (LQ, GT) pairs from folders, from folders by a list of names, or from LMDBs of PNG or raw pixels.

    It takes the options of BasicSR's PairedImageDataset and, from the same seed, cuts the same patches. It works on
    whole-number pixels, converts only the patch to float, and reads only the patch where the LMDB is raw. 8 and 16
    bits, gray and colour.

    In validation the ground truth is cut to `scale` times the LQ where it is less than `scale` pixels larger.

    Args:
        opt: the data set's block; see PairedCropOptions.

    Raises:
        OptionsError: a key is unknown or of the wrong type.
        DataError: folders are missing or do not fit together; the first picture at fault is named.
    """

    OPTIONS: ClassVar[type[PairedCropOptions]] = PairedCropOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.options = options = checked_options(self.OPTIONS, opt)
        self.scale = options.scale
        self.training = options.phase == 'train'
        if self.training:
            self._check_patch()
        self.gt = open_source(options.dataroot_gt, options)
        self.lq = open_source(options.dataroot_lq, options)
        self.pairs, sizes = self._pairs()
        self._check_known_sizes(sizes)
        self.paths = [{'lq_path': self.lq.path(lq), 'gt_path': self.gt.path(gt)} for lq, gt in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pair as float tensors (C, H, W) in [0, 1]: ``lq``, ``gt``, and the paths ``lq_path``, ``gt_path``.

        Raises:
            DataError: a picture is damaged, or the two do not fit together.
        """
        lq_name, gt_name = self.pairs[index]
        lq, gt = self.lq.open(lq_name), self.gt.open(gt_name)
        self._check_fit(lq.size, gt.size, index)
        if self.training:
            arrays = self._patches(lq, gt, index)
        else:
            height, width = lq.size
            arrays = [whole(lq), gt.crop(0, 0, height * self.scale, width * self.scale)]
        lq_tensor, gt_tensor = (finish(array, self.options) for array in arrays)
        return {'lq': lq_tensor, 'gt': gt_tensor, **self.paths[index]}

    def _patches(self, lq: Picture, gt: Picture, index: int) -> list[np.ndarray]:
        """Patches of LQ and GT from the same place, turned alike."""
        side, scale = self.patch, self.scale
        if min(lq.size) < side:
            if self.options.small_images != 'pad':
                raise SmallImageError(f'{self.lq.place(self.pairs[index][0])}: {self._small(lq.size)}')
            lq = DecodedPicture(pad_to(whole(lq), side, side))
            gt_part = gt.crop(0, 0, gt.size[0] // scale * scale, gt.size[1] // scale * scale)
            gt = DecodedPicture(pad_to(gt_part, side * scale, side * scale))
        top, left = random_corner(*lq.size, side)
        arrays = [lq.crop(top, left, side, side), gt.crop(top * scale, left * scale, side * scale, side * scale)]
        return random_flips(arrays, hflip=self.options.use_hflip, rotate=self.options.use_rot)

    @property
    def patch(self) -> int:
        """Side of an LQ patch. It is looked up for each sample: training by stages changes it on the way."""
        return int(self.opt['gt_size']) // self.scale

    def _check_patch(self) -> None:
        gt_size = self.options.gt_size
        if gt_size is None or gt_size % self.scale:
            raise DataError(f'gt_size: {gt_size}: training needs a multiple of the scale, {self.scale}')

    def _small(self, size: Size) -> str:
        return (
            f'LQ of {size[0]}x{size[1]} is smaller than the patch of {self.patch}x{self.patch} (gt_size '
            f'{self.opt["gt_size"]} / scale {self.scale}). Set small_images: pad or skip, or lower gt_size'
        )

    def _check_fit(self, lq: Size, gt: Size, index: int) -> None:
        """The ground truth is `scale` times the LQ, up to a remainder that is cut off."""
        if all(0 <= side_gt - side_lq * self.scale < self.scale for side_lq, side_gt in zip(lq, gt, strict=True)):
            return
        lq_name, gt_name = self.pairs[index]
        raise DataError(
            f'{self.gt.place(gt_name)} ({gt[0]}x{gt[1]}) is not {self.scale} times {self.lq.place(lq_name)} '
            f'({lq[0]}x{lq[1]}); check scale and dataroot_lq, or make the LQ anew (basicsr prepare)'
        )

    def _pairs(self) -> tuple[list[tuple[str, str]], dict[str, Size | None]]:
        """(LQ name, GT name) of each pair, and the sizes that the meta_info_file states by GT name."""
        present, listed_file = self.gt.names(), self.options.meta_info_file
        sizes: dict[str, Size | None] = {}
        names = present
        if listed_file:
            listed = read_meta_info_file(listed_file)
            names = select_names(self.gt, listed, listed_file)
            sizes = dict(zip(names, listed.values(), strict=True))
        pairs = [(self._lq_name(name), name) for name in names]
        self._check_names(pairs, set(present), set(self.lq.names()))
        return pairs, sizes

    def _lq_name(self, gt_name: str) -> str:
        template = self.options.filename_tmpl
        if not isinstance(self.gt, FolderSource):
            return template.format(gt_name)
        path = PurePosixPath(gt_name)
        return (path.parent / f'{template.format(path.stem)}{path.suffix}').as_posix()

    def _check_names(self, pairs: list[tuple[str, str]], have_gt: set[str], have_lq: set[str]) -> None:
        """Every pair is there; the first picture that is missing is named."""
        options = self.options
        lq_names, gt_names = [lq for lq, _ in pairs], [gt for _, gt in pairs]
        for root, wanted, have in ((options.dataroot_gt, gt_names, have_gt), (options.dataroot_lq, lq_names, have_lq)):
            missing = [name for name in wanted if name not in have]
            if missing:
                raise DataError(
                    f'{root}: {missing[0]!r} is missing, and {len(missing) - 1} more of {len(wanted)}; the first that '
                    f'is there is {min(have)!r}. Check dataroot_gt, dataroot_lq, filename_tmpl '
                    f'({options.filename_tmpl!r}) and meta_info_file ({options.meta_info_file or "not given"})'
                )
        extra = sorted(have_lq.difference(lq_names))
        if extra and not options.meta_info_file:
            raise DataError(
                f'{options.dataroot_lq}: {len(have_lq)} pictures, but {options.dataroot_gt} has {len(have_gt)}; '
                f'{extra[0]!r} has no ground truth. Remove it, or list the pairs in a meta_info_file'
            )

    def _check_known_sizes(self, listed: dict[str, Size | None]) -> None:
        """Check pairs whose sizes can be told without opening them; apply ``small_images`` to them."""
        lq_sizes, gt_sizes = self.lq.known_sizes(), self.gt.known_sizes()
        small: dict[int, Size] = {}
        for index, (lq_name, gt_name) in enumerate(self.pairs):
            lq, gt = lq_sizes.get(lq_name), gt_sizes.get(gt_name) or listed.get(gt_name)
            if lq and gt:
                self._check_fit(lq, gt, index)
            lq = lq or (gt and (gt[0] // self.scale, gt[1] // self.scale))
            if self.training and lq and min(lq) < self.patch:
                small[index] = lq
        if not small or self.options.small_images == 'pad':
            return
        first, size = next(iter(small.items()))
        message = f'{self.lq.place(self.pairs[first][0])}: {self._small(size)}'
        count = f'{len(small)} of {len(self.pairs)} pictures are too small'
        if self.options.small_images == 'error':
            raise SmallImageError(f'{message}. {count}')
        logger.warning('%s and are skipped; the first: %s', count, message)
        self.pairs = [pair for index, pair in enumerate(self.pairs) if index not in small]
