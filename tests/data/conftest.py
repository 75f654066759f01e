"""Folders of real pairs for the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hat_plugin.data.bicubic import imresize
from hat_plugin.data.lmdb_io import LmdbWriter, key_of


@dataclass(frozen=True)
class Pairs:
    """GT and LQ (1/4) of crops of photographs, as PNG."""

    gt: Path
    lq: Path
    names: tuple[str, ...]

    def options(self, kind: str = 'PairedCropDataset', **changes: Any) -> dict[str, Any]:
        """A data set's block for these pairs."""
        return {
            'name': 'pairs',
            'type': kind,
            'phase': 'train',
            'scale': 4,
            'dataroot_gt': str(self.gt),
            'dataroot_lq': str(self.lq),
            'io_backend': {'type': 'disk'},
            'gt_size': 64,
            'use_hflip': True,
            'use_rot': True,
            **changes,
        }


def write_pair(pairs: Pairs, name: str, rgb: np.ndarray) -> None:
    """Write a GT and its quarter."""
    bgr = np.ascontiguousarray(rgb[..., ::-1]) if rgb.ndim == 3 else rgb
    assert cv2.imwrite(str(pairs.gt / f'{name}.png'), bgr)
    assert cv2.imwrite(str(pairs.lq / f'{name}.png'), imresize(bgr, 0.25))


@pytest.fixture
def pairs(tmp_path: Path, photos: Any) -> Pairs:
    """Seven pairs of 96x128 and larger, one of them with a space in its name."""
    made = Pairs(tmp_path / 'GT', tmp_path / 'LQ', ('astronaut', 'chelsea', 'coffee', 'coffee 2', 'face', 'r1', 'r2'))
    made.gt.mkdir()
    made.lq.mkdir()
    corners = (
        ('astronaut', 0),
        ('chelsea', 40),
        ('coffee', 0),
        ('coffee', 160),
        ('astronaut', 120),
        ('rocket', 0),
        ('rocket', 99),
    )
    for name, (photo, top) in zip(made.names, corners, strict=True):
        write_pair(made, name, photos.small(photo, 96 + 4 * len(name), 128, top, 140))
    return made


@pytest.fixture
def lmdb_pairs(pairs: Pairs, tmp_path: Path) -> dict[str, Pairs]:
    """The same pairs as LMDBs, by kind: 'png' and 'raw'."""
    made = {}
    for kind in ('png', 'raw'):
        folders = []
        for folder in (pairs.gt, pairs.lq):
            target = tmp_path / f'{folder.name}_{kind}.lmdb'
            with LmdbWriter(target, kind) as writer:
                for name in pairs.names:
                    writer.put_image(key_of(name), cv2.imread(str(folder / f'{name}.png'), cv2.IMREAD_UNCHANGED))
            folders.append(target)
        made[kind] = Pairs(folders[0], folders[1], tuple(sorted(key_of(name) for name in pairs.names)))
    return made
