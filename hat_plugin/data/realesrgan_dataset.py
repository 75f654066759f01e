"""Ground truth and blur kernels for the Real-ESRGAN degradation: RealESRGANDataset, as HAT's option files use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from basicsr.data.realesrgan_dataset import RealESRGANDataset as BasicSRDataset
from pydantic import Field
from torch import Tensor

from hat_plugin.data.images import list_images
from hat_plugin.data.options import checked_options
from hat_plugin.data.sources import read_meta_info_file
from hat_plugin.engine.options import BackendOptions, Count, Flag, Float, LoaderOptions, Probability, Range, Text
from hat_plugin.errors import DataError

Kernel = Literal['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
Kernels = Annotated[list[Kernel], Field(min_length=1)]
Chances = Annotated[list[Float], Field(min_length=1)]


class RealESRGANOptions(LoaderOptions):
    """Options of RealESRGANDataset; those ending in 2 are of the second blur."""

    dataroot_gt: Text = Field(description='folder or .lmdb of the ground truth')
    io_backend: BackendOptions = Field(description='type: disk or lmdb')
    meta_info: Text | None = Field(default=None, description='a list of file names, one a line')
    meta_info_file: Text | None = Field(default=None, description="the same, as HAT's option files call it")
    gt_size: Count | None = Field(default=None, description='in published files; the model cuts to its own gt_size')
    use_hflip: Flag = Field(description='mirror at random')
    use_rot: Flag = Field(description='turn by multiples of 90 degrees at random')
    blur_kernel_size: Literal[21] = Field(description='the side that kernels are padded to')
    kernel_list: Kernels = Field(description='kinds of blur kernels')
    kernel_prob: Chances = Field(description='the chance of each')
    sinc_prob: Probability = Field(description='the chance of a sinc kernel')
    blur_sigma: Range = Field(description='standard deviations of the blur')
    betag_range: Range = Field(description='shape of generalised Gaussian kernels')
    betap_range: Range = Field(description='shape of plateau kernels')
    blur_kernel_size2: Literal[21] = Field(description='the side that kernels are padded to')
    kernel_list2: Kernels = Field(description='kinds of blur kernels')
    kernel_prob2: Chances = Field(description='the chance of each')
    sinc_prob2: Probability = Field(description='the chance of a sinc kernel')
    blur_sigma2: Range = Field(description='standard deviations of the blur')
    betag_range2: Range = Field(description='shape of generalised Gaussian kernels')
    betap_range2: Range = Field(description='shape of plateau kernels')
    final_sinc_prob: Probability = Field(description='the chance of a sinc filter at the end')


class RealESRGANDataset(BasicSRDataset):
    """BasicSR's data set of this name, which opens ``meta_info`` and nothing else, where HAT's files say otherwise.

    The list may stand under ``meta_info`` or ``meta_info_file``; without one, all pictures of the folder are taken. A
    picture that cannot be read is an error with its path; BasicSR takes another at random.

    Args:
        opt: the data set's block; see RealESRGANOptions.

    Raises:
        OptionsError: a key is missing, unknown or of the wrong type.
        DataError: the folder, the list or the first picture is missing.
    """

    OPTIONS: ClassVar[type[RealESRGANOptions]] = RealESRGANOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        checked_options(self.OPTIONS, opt)
        self.on_disk = opt['io_backend']['type'] != 'lmdb'
        # BasicSR gets an empty list of names where it would open one: ours are put in afterwards.
        super().__init__({**opt, 'meta_info': os.devnull} if self.on_disk else opt)
        self.opt = opt
        if self.on_disk:
            self.paths = self._found(opt)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """``gt`` (3, 400, 400), ``kernel1``, ``kernel2``, ``sinc_kernel`` (21, 21) and ``gt_path``.

        Raises:
            DataError: the picture is missing.
        """
        path = self.paths[index]
        if self.on_disk and not os.access(path, os.R_OK):
            raise DataError(f'{path}: cannot be read; it is missing, or closed to you')
        return super().__getitem__(index)

    @staticmethod
    def _found(opt: dict[str, Any]) -> list[str]:
        root = Path(opt['dataroot_gt']).expanduser()
        listed = opt.get('meta_info') or opt.get('meta_info_file')
        paths = [os.fspath(root / name) for name in (read_meta_info_file(listed) if listed else list_images(root))]
        if not os.path.isfile(paths[0]):
            raise DataError(f'{paths[0]}: no such file, though {listed} lists it first; check dataroot_gt')
        return paths
