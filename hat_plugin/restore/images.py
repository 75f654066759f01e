"""Picture files as they come and as they are written: depth, transparency, orientation, colour.

Reading is ``data.images.read_image``'s; here are its counterpart for writing, and orientation beyond JPEG. Colour
profiles and other metadata are not carried over.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from hat_plugin.data.images import read_image
from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import DataError

# What is written: suffix -> (16 bits, transparency, encoder's parameters).
_WRITERS: dict[str, tuple[bool, bool, tuple[int, ...]]] = {
    '.png': (True, True, ()),
    '.tif': (True, True, ()),
    '.tiff': (True, True, ()),
    '.webp': (False, True, (cv2.IMWRITE_WEBP_QUALITY, 101)),  # above 100: without loss
    '.jpg': (False, False, (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)),
    '.jpeg': (False, False, (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)),
    '.bmp': (False, False, ()),
}
WRITTEN_SUFFIXES = tuple(_WRITERS)
_ORIENTATION_TAG = 0x0112


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture as it is stored, standing upright.

    Returns:
        (H, W, C) with C 1 (gray), 3 (RGB) or 4 (RGBA), uint8 or uint16.

    Raises:
        DataError: as ``data.images.read_image``.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f'{file}: cannot be read ({error.strerror})') from error
    array = read_image(content, channels=None, name=str(file))
    # JPEG and TIFF stand upright already: read_image sees to the one, OpenCV's decoder to the other.
    if file.suffix.lower() in ('.png', '.webp'):
        array = _upright(array, content)
    return array


def _upright(array: np.ndarray, content: bytes) -> np.ndarray:
    """Turn a picture as its EXIF orientation (1 to 8) says."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return array  # OpenCV could read it; without EXIF that Pillow understands it stays as stored
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def keeps_16_bits(suffix: str) -> bool:
    """Whether `write_image` writes 16 bits a channel into files of this suffix."""
    return suffix.lower() in _WRITERS and _WRITERS[suffix.lower()][0]


def fitting(array: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """A picture as the file's format can hold it: without an alpha channel that is opaque throughout.

    Raises:
        DataError: it is transparent somewhere, and the format has no transparency.
    """
    file = Path(path)
    if array.shape[2] != 4 or file.suffix.lower() not in _WRITERS or _WRITERS[file.suffix.lower()][1]:
        return array
    if (array[..., 3] == np.iinfo(array.dtype).max).all():
        return array[..., :3]
    raise DataError(f'{file}: {file.suffix.lower()} has no transparency; give --ext png')


def write_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a picture whole or not at all.

    JPEG has quality 95 and full colour resolution, WebP is without loss; 16-bit pictures are rounded to 8 where the
    format has no more.

    Args:
        path: suffix among `WRITTEN_SUFFIXES`; the folder exists.
        array: (H, W, C), C 1, 3 (RGB) or 4 (RGBA), uint8 or uint16.

    Raises:
        DataError: an unknown suffix, transparency that the format has not, or a size beyond the format.
        OSError: the disk is full or the folder cannot be written.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in _WRITERS:
        raise DataError(f'{file}: pictures are written as {", ".join(WRITTEN_SUFFIXES)}; give --ext png')
    deep, _, parameters = _WRITERS[suffix]
    array = fitting(array, file)
    if array.dtype == np.uint16 and not deep:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(array.shape[2])
    stored = array if order is None else cv2.cvtColor(array, order)
    try:
        done, content = cv2.imencode(suffix, stored, list(parameters))
    except cv2.error as error:
        raise DataError(f'{file}: cannot be coded as {suffix} ({error.err}); give --ext png') from error
    if not done:
        raise DataError(f'{file}: {array.shape[1]} x {array.shape[0]} pixels do not fit into {suffix}; give --ext png')
    with atomic_file(file) as aside:
        aside.write_bytes(content.tobytes())
