"""What pictures of a data set are called where results of them are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any


def picture_name(lq_path: str, dataset_opt: Mapping[str, Any]) -> str:
    """What results of a picture are called: its path in the data set without the ending, or its key in an LMDB.

    Two pictures of a data set share it only where they differ in nothing but the ending.

    Args:
        lq_path: as the data set gives it.
        dataset_opt: its block of the option file.
    """
    path = Path(lq_path)
    for root in (dataset_opt.get('dataroot_lq'), dataset_opt.get('dataroot_gt')):
        if root is not None and path.is_relative_to(root):
            return path.relative_to(root).with_suffix('').as_posix()
    key = PurePosixPath(lq_path)
    backend = dataset_opt.get('io_backend') or {}
    in_lmdb = backend.get('type') == 'lmdb' or 'db_paths' in backend  # BasicSR's data sets take the type out
    if in_lmdb and not key.is_absolute() and '..' not in key.parts:
        return str(key)
    return path.stem
