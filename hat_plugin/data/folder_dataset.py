"""A folder of pictures without ground truth: FolderDataset."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch.utils.data import Dataset

from hat_plugin.data.augment import finish
from hat_plugin.data.names import picture_name
from hat_plugin.data.options import PictureOptions, checked_options
from hat_plugin.data.sources import listed_names, open_source, whole
from hat_plugin.engine.options import Text
from hat_plugin.errors import DataError


class FolderOptions(PictureOptions):
    """Options of FolderDataset: those of BasicSR's SingleImageDataset, and ours."""

    dataroot_lq: Text = Field(description='folder or .lmdb of the pictures to restore')


class FolderDataset(Dataset[dict[str, Any]]):
    """Pictures to restore, 8 or 16 bits, gray or colour, in a folder and its subfolders or an LMDB.

    Args:
        opt: the data set's block; see FolderOptions.

    Raises:
        OptionsError: a key is unknown or of the wrong type.
        DataError: the folder is missing or empty, a listed picture is missing, or two have one name and would be saved
            to one file.
    """

    OPTIONS: ClassVar[type[FolderOptions]] = FolderOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.options = checked_options(self.OPTIONS, opt)
        self.source = open_source(self.options.dataroot_lq, self.options)
        self.names = listed_names(self.source, self.options.meta_info_file)
        self._check_unique()
        self.paths = [self.source.path(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture as a float tensor (C, H, W) in [0, 1], ``lq``, and its path, ``lq_path``.

        Raises:
            DataError: the picture is damaged.
        """
        picture = self.source.open(self.names[index])
        return {'lq': finish(whole(picture), self.options), 'lq_path': self.paths[index]}

    def _check_unique(self) -> None:
        """Results are saved under a name without the ending."""
        seen: dict[str, str] = {}
        for name in self.names:
            path = self.source.path(name)
            other = seen.setdefault(picture_name(path, self.opt), path)
            if other != path:
                raise DataError(
                    f'{path} and {other}: results of both would have one name; '
                    'rename one, or restore the folder with `basicsr restore`'
                )
