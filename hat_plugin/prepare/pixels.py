"""Where the pixels of a source picture come from: a file, or a block of an array in a MATLAB file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from hat_plugin.data.images import read_image
from hat_plugin.errors import DataError

_TURNED_BY_EXIF = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class Block:
    """One picture out of an array that a MATLAB file holds, as SIDD's validation set is published.

    The pixels travel with it to the worker processes, so that the file is read once and not by each of them.

    Attributes:
        path: the file, for messages and to tell whether it has changed.
        index: of the block in the array, as Python counts.
        pixels: (H, W, 3), RGB, uint8.
    """

    path: Path
    index: tuple[int, ...]
    pixels: np.ndarray = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f'{self.path}, block {", ".join(str(number + 1) for number in self.index)}'


PixelSource = Path | Block


def stamp(source: PixelSource) -> tuple[str, int, int]:
    """(name, bytes, time of change in ns) of a file: what tells it from another that came to its place.

    Bytes and time are -1 where there is no file; reading it will say so.
    """
    path = source.path if isinstance(source, Block) else source
    try:
        status = path.stat()
    except OSError:
        return path.name, -1, -1
    return path.name, status.st_size, status.st_mtime_ns


def picture_size(source: PixelSource) -> tuple[int, int]:
    """(width, height), out of a file's head, without decoding it.

    Raises:
        DataError: it is no picture.
    """
    if isinstance(source, Block):
        return source.pixels.shape[1], source.pixels.shape[0]
    try:
        with Image.open(source) as image:
            width, height = image.size
            # JPEGs alone are turned when they are read; MPO is what some cameras call theirs.
            turned = image.format in ('JPEG', 'MPO') and image.getexif().get(0x0112) in _TURNED_BY_EXIF
            return (height, width) if turned else (width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{source}: no readable picture ({error}); copy or unpack it again') from error


def read_stored(source: PixelSource, *, drop_alpha: bool) -> np.ndarray:
    """A picture as it is stored: (H, W, 1) or (H, W, 3), uint8 or uint16, BGR.

    Raises:
        DataError: it cannot be read, or has transparent pixels and `drop_alpha` is not set.
    """
    if isinstance(source, Block):
        return np.ascontiguousarray(source.pixels[..., ::-1])
    image = read_image(source, channels=None)
    if image.shape[2] == 4:
        image = read_image(source, channels=3, alpha='drop' if drop_alpha else 'error')
    return np.ascontiguousarray(image[..., ::-1])
