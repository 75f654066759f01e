"""Reading images from an LMDB: PNG as BasicSR writes and reads it, or raw pixels that are read by crops.

An LMDB of images is a folder ``NAME.lmdb`` with ``data.mdb`` and ``meta_info.txt``. The writer is `LmdbWriter`.
"""

from __future__ import annotations

import copy
import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np

from hat_plugin.data.lmdb_meta import Entry, check_whole, key_of, read_meta_info
from hat_plugin.data.lmdb_writer import LmdbWriter, encode_image
from hat_plugin.errors import DataError

__all__ = ['LmdbReader', 'LmdbWriter', 'check_whole', 'encode_image', 'key_of']


class _Environment:
    """An open LMDB, shared by all readers of it in this process (LMDB forbids opening it twice)."""

    def __init__(self, path: Path) -> None:
        check_whole(path)
        try:
            self.handle = lmdb.open(os.fspath(path), readonly=True, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            remedy = 'it is damaged; copy it or prepare it again'
            if 'already open' in str(error):
                remedy = 'BasicSR holds it open; read it with PairedCropDataset everywhere in this run, or with neither'
            raise DataError(f'{path}: {error}; {remedy}') from error

    def __del__(self) -> None:
        if hasattr(self, 'handle'):
            self.handle.close()


# Which file is open is told by device and inode: an LMDB that was prepared again under the same name is another one.
# A forked child finds its parent's entries here and goes on with them: without locks a read-only map is safe to share.
_environments: weakref.WeakValueDictionary[tuple[int, int], _Environment] = weakref.WeakValueDictionary()


def _open(path: Path) -> _Environment:
    try:
        status = os.stat(path / 'data.mdb')
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}; has it been moved since the run began?') from error
    key = (status.st_dev, status.st_ino)
    environment = _environments.get(key)
    if environment is None:
        environment = _environments[key] = _Environment(path)
    return environment


class LmdbReader:
    """Reads images of one LMDB by key.

    The file is opened at the first read, in whichever process that is: a reader can be pickled to spawned workers,
    used after a fork, and held several times in one process. ``kind`` is 'png' or 'raw'.

    Args:
        path: the `.lmdb` folder.

    Raises:
        DataError: meta_info.txt or data.mdb is missing, wrong or cut short.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.kind, self._entries = read_meta_info(self.path)
        check_whole(self.path)
        self._environment: _Environment | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_environment': None}

    def __deepcopy__(self, memo: dict[int, Any]) -> LmdbReader:
        return copy.copy(self)  # the entries do not change; the copy opens the file by itself

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def keys(self) -> list[str]:
        """All keys, in the order of meta_info.txt (sorted, where `LmdbWriter` wrote it)."""
        return list(self._entries)

    def close(self) -> None:
        """Let go of the file. The next read opens it again."""
        self._environment = None

    def read(self, key: str) -> bytes:
        """The stored bytes: a PNG file, or pixels in C order.

        Raises:
            DataError: there is no such key.
        """
        with self._transaction() as transaction:
            return bytes(self._value(transaction, key))

    def stated_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(height, width, channels) of each image whose shape meta_info.txt states."""
        return {key: entry.shape for key, entry in self._entries.items() if entry.shape is not None}

    def stated_shape(self, key: str) -> tuple[int, int, int] | None:
        """The shape of one image as meta_info.txt states it, or None.

        Raises:
            DataError: there is no such key.
        """
        return self._entry(key).shape

    def shape(self, key: str) -> tuple[int, int, int]:
        """(height, width, channels) as meta_info.txt says; where it does not, as the decoded image says."""
        shape = self.stated_shape(key)
        return shape if shape is not None else self.image(key).shape

    def image(self, key: str) -> np.ndarray:
        """The whole image.

        Returns:
            (H, W, C), uint8 or uint16, BGR; C is 1 for gray, 4 where there is transparency.

        Raises:
            DataError: there is no such key, or its value is no image of the shape that is stated.
        """
        if self.kind == 'raw':
            with self._transaction() as transaction:
                return self._raw(transaction, key).copy()
        with self._transaction() as transaction:
            pixels = np.frombuffer(self._value(transaction, key), np.uint8)
            # An LMDB of ImageNet keeps the published JPEGs; only without UNCHANGED are they turned as their EXIF says.
            is_jpeg = pixels[:3].tobytes() == b'\xff\xd8\xff'
            flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if is_jpeg else cv2.IMREAD_UNCHANGED
            image = cv2.imdecode(pixels, flags) if pixels.size else None
        if image is None:
            raise DataError(f'{self.path}: the value of {key!r} is no readable PNG; prepare the LMDB again')
        return image if image.ndim == 3 else image[:, :, None]

    def crop(self, key: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A rectangle of an image. From raw pixels only its rows are touched; a PNG is decoded whole.

        Args:
            key: the image.
            top, left: the first row and column, from 0.
            height, width: size in pixels.

        Returns:
            (height, width, C), uint8 or uint16, BGR, owning its memory.

        Raises:
            DataError: there is no such key, the rectangle is not inside the image, or the image is broken.
        """
        if self.kind == 'png':
            image = self.image(key)
            self._check_inside(key, image.shape, (top, left, height, width))
            return image[top : top + height, left : left + width].copy()
        with self._transaction() as transaction:
            image = self._raw(transaction, key)
            self._check_inside(key, image.shape, (top, left, height, width))
            return image[top : top + height, left : left + width].copy()

    def _transaction(self) -> lmdb.Transaction[memoryview[int]]:
        if self._environment is None:
            self._environment = _open(self.path)
        return self._environment.handle.begin(buffers=True)

    def _entry(self, key: str) -> Entry:
        try:
            return self._entries[key]
        except KeyError:
            first = next(iter(self._entries))
            raise DataError(
                f'{self.path}: no image {key!r} among the {len(self)} of meta_info.txt (the first is {first!r})'
            ) from None

    def _value(self, transaction: lmdb.Transaction, key: str) -> Any:
        self._entry(key)
        value = transaction.get(key.encode('utf-8'))
        if value is None:
            raise DataError(f'{self.path}: {key!r} is in meta_info.txt but not in data.mdb; prepare the LMDB again')
        return value

    def _raw(self, transaction: lmdb.Transaction, key: str) -> np.ndarray:
        entry = self._entry(key)
        value = self._value(transaction, key)
        dtype = np.dtype(entry.dtype).newbyteorder('<')
        assert entry.shape is not None  # parse_line saw to it
        if len(value) != math.prod(entry.shape) * dtype.itemsize:
            raise DataError(
                f'{self.path}: {key!r} has {len(value)} bytes, which is no {entry.dtype} image of shape {entry.shape}; '
                f'prepare the LMDB again'
            )
        return np.frombuffer(value, dtype).reshape(entry.shape)

    def _check_inside(self, key: str, shape: tuple[int, ...], rectangle: tuple[int, int, int, int]) -> None:
        top, left, height, width = rectangle
        if min(top, left) < 0 or min(height, width) < 1 or top + height > shape[0] or left + width > shape[1]:
            raise DataError(
                f'{self.path}: a crop of {width}x{height} at ({top}, {left}) is not inside {key!r}, '
                f'which is {shape[1]}x{shape[0]}'
            )
