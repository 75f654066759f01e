"""SIDD's arrays of 40 x 32 blocks in MATLAB files: reading them, and naming the blocks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from hat_plugin.errors import DataError
from hat_plugin.prepare.pixels import Block

GRID = (40, 32)
"""Pictures, and blocks of each."""
BLOCK = (256, 256, 3)

_NAME = re.compile(r'(\d{4})_(\d{2})(?:_.*)?')


def block_name(index: tuple[int, ...]) -> str:
    """The name of a block, counted from 1 as in MATLAB: 0001_01 to 0040_32."""
    return f'{index[0] + 1:04d}_{index[1] + 1:02d}'


def block_index(stem: str) -> tuple[int, int] | None:
    """The index of a block from a file's name, to which a suffix may have been added; None for another name."""
    match = _NAME.fullmatch(stem)
    return (int(match[1]) - 1, int(match[2]) - 1) if match else None


def read_blocks(path: Path, *, allow_partial: bool = False) -> dict[str, Block]:
    """All blocks of a file, which holds them in a variable of its own name (ValidationGtBlocksSrgb).

    Returns:
        Name -> block, in order.

    Raises:
        DataError: the file cannot be read, has no such variable, or this is no array of blocks of the published size.
    """
    array = _array(path)
    if array.ndim != 5 or array.shape[4] != 3 or array.dtype != np.uint8:
        raise DataError(
            f'{path}: {array.dtype} of shape {array.shape} is no uint8 array of pictures x blocks x H x W x 3'
        )
    if array.shape != GRID + BLOCK and not allow_partial:
        raise DataError(
            f'{path}: {array.shape}, published are {GRID + BLOCK}; download it again, or go on with --allow-partial'
        )
    array = np.ascontiguousarray(array)  # MATLAB's order strews a block over the whole of it
    return {block_name(index): Block(path, index, array[index]) for index in np.ndindex(*array.shape[:2])}


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f'{path}: no such file; datasets/README.md says where it comes from')
    with open(path, 'rb') as handle:
        if handle.read(10) == b'MATLAB 7.3':
            raise DataError(
                f'{path}: is of MATLAB 7.3 (HDF5), and files up to version 7 are read, as SIDD is published. Convert '
                f"it in MATLAB: load('{path.name}'); save('{path.name}', '{path.stem}', '-v7')"
            )
    try:
        content = loadmat(path, variable_names=[path.stem])
    except Exception as error:  # scipy raises whatever its parsers come upon
        raise DataError(f'{path}: is damaged, or no MATLAB file ({error}); download it again') from error
    if path.stem not in content:
        raise DataError(f'{path}: has no variable {path.stem}; do not rename the published file')
    array: np.ndarray = content[path.stem]
    return array
