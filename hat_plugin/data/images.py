"""One way from an image file to an array and a tensor, with errors that name the file.

Unlike ``cv2.imread`` with its defaults, 16-bit pictures stay 16-bit, transparency is never dropped unseen, and a file
that was cut short is an error instead of a picture with a grey bottom. So is one that was filled up with zeros, as
broken downloads leave them; but where zeros are black pixels this cannot be told: BMP, PPM and PGM, uncompressed TIFF,
and the last bytes of a lossy WebP.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from hat_plugin.errors import DataError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.pnm')
Alpha = Literal['error', 'drop']

_JPEG_START, _JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'
_ZEROS = 16  # so many at the end may be chance
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    channels: Literal[1, 3] | None = 3,
    alpha: Alpha = 'error',
    name: str | None = None,
) -> np.ndarray:
    """Read an 8- or 16-bit picture.

    Args:
        source: a file's path, or the bytes of an encoded picture.
        channels: 3 repeats a gray picture three times; 1 turns colour into BT.601 luma; None keeps what is stored:
            1 (gray), 3 (RGB) or 4 (RGBA).
        alpha: what to do with an alpha channel where `channels` is 1 or 3. A channel that is opaque throughout is
            always dropped; a real one is an 'error', or is dropped ('drop', as BasicSR does).
        name: what to call `source` in errors, where it is bytes.

    Returns:
        The picture, (H, W, C), RGB, uint8 or uint16, contiguous. EXIF orientation of JPEGs is applied.

    Raises:
        DataError: the file is missing, empty, no picture, cut short, neither 8- nor 16-bit, or has transparent pixels.
    """
    content, name = _content(source, name)
    return convert_channels(_decode(content, name), channels, alpha, name)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{os.fspath(path)}: cannot be read: {error.strerror or error}') from error


def to_float_tensor(array: np.ndarray) -> torch.Tensor:
    """A picture (H, W, C) or (H, W), uint8, uint16 or float32 in [0, 1], as a contiguous float32 tensor (C, H, W)."""
    if array.ndim == 2:
        array = array[..., None]
    planes = array.transpose(2, 0, 1)
    if planes.dtype == np.float32:
        return torch.from_numpy(np.ascontiguousarray(planes))
    if planes.dtype not in (np.uint8, np.uint16):
        raise TypeError(f'to_float_tensor: dtype {planes.dtype} is not uint8, uint16 or float32')
    # One pass that turns the layout and divides; a copy to float first and torch's division take 1.1 times as long.
    values = np.empty(planes.shape, np.float32)
    np.divide(planes, np.float32(np.iinfo(planes.dtype).max), out=values, dtype=np.float32)
    return torch.from_numpy(values)


def from_float_tensor(tensor: torch.Tensor, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> np.ndarray:
    """Round a tensor (C, H, W) or (1, C, H, W), float in [0, 1], to a picture (H, W, C) of uint8 or uint16.

    Values outside [0, 1] are clamped.

    Raises:
        DataError: a value is NaN or infinite (as a picture it would look plausible).
    """
    if dtype not in (np.uint8, np.uint16):
        raise TypeError(f'from_float_tensor: dtype {dtype} is not np.uint8 or np.uint16')
    planes = tensor.detach().squeeze(0) if tensor.dim() == 4 else tensor.detach()
    if planes.dim() != 3:
        raise ValueError(f'from_float_tensor: shape {tuple(tensor.shape)} is not (C, H, W) or (1, C, H, W)')
    planes = planes.float().cpu()
    if not bool(torch.isfinite(planes).all()):
        raise DataError('the network put out NaN or infinity; no picture is made of it')
    values = planes.clamp(0, 1).mul(np.iinfo(dtype).max).round().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(values.astype(dtype))


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all pictures in a folder and its subfolders, relative to it, in an order that no file system changes.

    Hidden files and files that are no pictures by their suffix are left out, and so are links to a folder that they
    lie in.

    Raises:
        DataError: the folder does not exist, is a file or holds no picture.
    """
    root = Path(folder)
    check_folder(root)
    names = []
    above = {os.fspath(root): {_identity(root)}}  # a folder -> itself and all that it lies in
    for parent, folders, files in os.walk(root, followlinks=True):
        known = above.pop(parent)
        found = {name: _identity(os.path.join(parent, name)) for name in folders if not name.startswith('.')}
        folders[:] = sorted(name for name, identity in found.items() if identity not in known)
        above |= {os.path.join(parent, name): {*known, found[name]} for name in folders}
        relative = Path(parent).relative_to(root)
        names += [
            (relative / name).as_posix()
            for name in files
            if not name.startswith('.') and name.lower().endswith(IMAGE_SUFFIXES)
        ]
    if not names:
        raise DataError(f'{root}: holds no picture ({", ".join(IMAGE_SUFFIXES)})')
    return sorted(names)


def check_folder(path: Path) -> None:
    """Raises DataError where there is no folder."""
    if path.is_file():
        raise DataError(f'{path}: is a file, not a folder; name the folder that it lies in')
    if not path.is_dir():
        raise DataError(f'{path}: no such folder. Prepare the data (basicsr prepare) or correct the path')


def convert_channels(array: np.ndarray, channels: Literal[1, 3] | None, alpha: Alpha, name: str) -> np.ndarray:
    """A picture (H, W, C) in OpenCV's order to RGB(A) with the wanted number of channels; see `read_image`."""
    stored = array.shape[2]
    if stored not in (1, 3, 4):
        raise DataError(f'{name}: has {stored} channels; pictures with 1, 3 or 4 are read')
    if channels is None:
        code = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(stored)
        return array if code is None else cv2.cvtColor(array, code)
    if stored == 4:
        if alpha == 'error' and array[..., 3].min() < np.iinfo(array.dtype).max:
            raise DataError(f'{name}: has transparent pixels; flatten it onto a background (alpha: drop ignores them)')
        array = np.ascontiguousarray(array[..., :3])
    if channels == 1:
        return array if array.shape[2] == 1 else cv2.cvtColor(array, cv2.COLOR_BGR2GRAY)[..., None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _content(source: str | os.PathLike[str] | bytes, name: str | None) -> tuple[bytes, str]:
    """The encoded bytes, and what to call them."""
    if isinstance(source, bytes | bytearray | memoryview):
        content, name = bytes(source), name or 'picture in memory'
    else:
        content, name = read_bytes(source), name or os.fspath(source)
    if not content:
        raise DataError(f'{name}: is empty (0 bytes); copy it again')
    return content, name


def _decode(content: bytes, name: str) -> np.ndarray:
    """Encoded bytes to an array (H, W, C), channels in OpenCV's order."""
    is_jpeg = content.startswith(_JPEG_START)
    if content.startswith(_PNG_START) and _PNG_END not in content[-1024:]:
        raise DataError(f'{name}: is cut short (a PNG without its end); copy it again')
    if is_jpeg and not content.rstrip(b'\0').endswith(_JPEG_END):
        _check_jpeg(content, name)
    if content.startswith(b'RIFF') and content[8:12] == b'WEBP':
        _check_webp(content, name)
    # UNCHANGED keeps 16 bits and alpha; the flags for JPEG, which has neither, also turn it as its EXIF says.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if is_jpeg else cv2.IMREAD_UNCHANGED
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f'{name}: cannot be decoded: {error.err}') from error
    if array is None:
        raise DataError(f'{name}: is damaged, or not a picture ({len(content)} bytes, begins with {content[:8]!r})')
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f'{name}: has {array.dtype} pixels; 8- and 16-bit pictures are read. Convert it')
    return array[..., None] if array.ndim == 2 else array


def _check_jpeg(content: bytes, name: str) -> None:
    """A JPEG that does not end as it should may carry data of its maker, or be cut short; Pillow tells these apart.

    Zeros in place of the end are no data to a maker, and good pixels to Pillow.
    """
    from PIL import Image

    zeros = _zeros_at_end(content)
    if zeros > len(_JPEG_END) and _JPEG_END not in content[_jpeg_pixels(content) :]:
        raise DataError(f'{name}: is cut short (a JPEG without its end, {zeros} zero bytes instead); copy it again')
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except Image.DecompressionBombError:  # too large for Pillow to look into, not for OpenCV
        return
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f'{name}: is damaged or cut short ({error}); copy it again') from error


def _jpeg_pixels(content: bytes) -> int:
    """Where the first scan begins: behind the headers, whose preview may hold an end of its own."""
    position = len(_JPEG_START) - 1
    while content[position : position + 1] == b'\xff' and content[position + 1] != 0xDA:
        fill = content[position + 1] == 0xFF
        position += 1 if fill else 2 + int.from_bytes(content[position + 2 : position + 4], 'big')
        if position + 1 >= len(content):
            break
    return position


def _check_webp(content: bytes, name: str) -> None:
    """See that the pixels of a WebP do not end in zeros.

    Lossless ones do not. Lossy ones do after a flat area: one byte for 10,000 pixels was measured, in white and black
    pictures; four times as many are let through.
    """
    position = 12
    while position + 8 <= min(len(content), 8 + int.from_bytes(content[4:8], 'little')):
        kind, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], 'little')
        pixels = content[position + 8 : position + 8 + size]
        allowed = _ZEROS
        if kind == b'VP8 ':
            width, height = (int.from_bytes(pixels[start : start + 2], 'little') & 0x3FFF for start in (6, 8))
            allowed += width * height // 2500
        if not any(kind) or (kind in (b'VP8 ', b'VP8L') and _zeros_at_end(pixels) > allowed):
            raise DataError(f'{name}: is cut short (a WebP whose data ends in zeros); copy it again')
        position += 8 + size + size % 2


def _zeros_at_end(content: bytes) -> int:
    return len(content) - len(content.rstrip(b'\0'))
