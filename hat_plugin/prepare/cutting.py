"""From one source picture to the encoded images of every output; runs in the worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hat_plugin.data.bicubic import imresize, mod_crop
from hat_plugin.data.images import read_image
from hat_plugin.data.lmdb_writer import EncodedImage, encode_image
from hat_plugin.errors import DataError
from hat_plugin.prepare.plan import Cut, Output, Picture


@dataclass(frozen=True)
class CutResult:
    """What a worker hands back: images by output name, or why there are none."""

    images: dict[str, list[EncodedImage]]
    left_out: str = ''
    error: str = ''


def cut_picture(task: tuple[Picture, Cut, tuple[Output, ...]]) -> CutResult:
    """Read a picture, make its low-resolution versions, cut all into sub-images and encode these.

    A picture that cannot be used is told in the result and not raised, so that the others go on.
    """
    picture, cut, outputs = task
    try:
        truth = read_stored(picture.hr, drop_alpha=cut.drop_alpha)
        height, width = (side - side % cut.modulus for side in truth.shape[:2])
        if min(height, width) < max(cut.smallest, 1):
            return CutResult({}, left_out=_too_small(picture, truth.shape, (height, width)))
        truth = mod_crop(truth, cut.modulus)
        images: dict[str, list[EncodedImage]] = {}
        for scale in sorted({output.scale for output in outputs}):
            whole = truth if scale == 1 else low_resolution(picture, truth, scale, drop_alpha=cut.drop_alpha)
            for output in outputs:
                if output.scale == scale:
                    images[output.name] = list(_encoded(picture.stem, whole, cut, output))
    except DataError as error:
        return CutResult({}, error=str(error))
    return CutResult(images)


def read_stored(path: Path, *, drop_alpha: bool) -> np.ndarray:
    """A picture as it is stored: (H, W, 1) or (H, W, 3), uint8 or uint16, BGR.

    Raises:
        DataError: it cannot be read, or has transparent pixels and `drop_alpha` is not set.
    """
    image = read_image(path, channels=None)
    if image.shape[2] == 4:
        image = read_image(path, channels=3, alpha='drop' if drop_alpha else 'error')
    return np.ascontiguousarray(image[..., ::-1])


def low_resolution(picture: Picture, truth: np.ndarray, scale: int, *, drop_alpha: bool) -> np.ndarray:
    """The low-resolution picture: the published file, cropped as the ground truth was, or the bicubic.

    Args:
        truth: (H, W, C), sides multiples of the scale.

    Returns:
        (H / scale, W / scale, C).

    Raises:
        DataError: the published file does not fit the ground truth.
    """
    height, width = truth.shape[0] // scale, truth.shape[1] // scale
    if scale not in picture.lr:
        return imresize(truth, 1 / scale)
    image = read_stored(picture.lr[scale], drop_alpha=drop_alpha)
    if image.shape[0] < height or image.shape[1] < width or image.shape[2] != truth.shape[2]:
        raise DataError(misfit(picture, scale, image.shape[1::-1], (truth.shape[1], truth.shape[0])))
    return np.ascontiguousarray(image[:height, :width])


def _too_small(picture: Picture, shape: tuple[int, ...], cropped: tuple[int, int]) -> str:
    crop = '' if cropped == shape[:2] else f', cropped {cropped[1]}x{cropped[0]},'
    return f'{picture.hr}: {shape[1]}x{shape[0]}{crop} is too small'


def misfit(picture: Picture, scale: int, lr_size: tuple[int, ...], hr_size: tuple[int, ...]) -> str:
    """What to say of a published low-resolution file that does not belong to its ground truth."""
    return (
        f'{picture.lr[scale]}: {lr_size[0]}x{lr_size[1]} is not the x{scale} of {picture.hr} '
        f'({hr_size[0]}x{hr_size[1]}); unpack both archives again, or make it anew with --lr bicubic'
    )


def positions(side: int, size: int, step: int, threshold: int) -> list[int]:
    """Where sub-images begin along one side.

    They stand `step` apart; if more than `threshold` pixels are left over at the end, one more stands flush with it.
    A side that is shorter than `size` gives one, of the whole side.
    """
    if side <= size:
        return [0]
    starts = list(range(0, side - size + 1, step))
    if side - (starts[-1] + size) > threshold:
        starts.append(side - size)
    return starts


def first_key(stem: str, cut: Cut) -> str:
    """The first key that a picture gives."""
    return f'{stem}_s001' if cut.size else stem


def rectangles(shape: tuple[int, ...], cut: Cut) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of a picture's sub-images in the ground truth, row by row; one where `size` is 0."""
    if not cut.size:
        return [(0, 0, shape[0], shape[1])]
    tops, lefts = (positions(side, cut.size, cut.step, cut.threshold) for side in shape[:2])
    height, width = (min(side, cut.size) for side in shape[:2])
    return [(top, left, height, width) for top in tops for left in lefts]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) out of a file's head, without decoding it.

    Raises:
        DataError: it is no picture.
    """
    try:
        with Image.open(path) as image:
            size: tuple[int, int] = image.size
            return size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{path}: no readable picture ({error}); copy or unpack it again') from error


def _encoded(stem: str, whole: np.ndarray, cut: Cut, output: Output) -> Iterator[EncodedImage]:
    scale = output.scale
    truth_shape = (whole.shape[0] * scale, whole.shape[1] * scale)
    for number, rectangle in enumerate(rectangles(truth_shape, cut), 1):
        top, left, height, width = (value // scale for value in rectangle)
        image = np.ascontiguousarray(whole[top : top + height, left : left + width])
        key = f'{stem}_s{number:03d}' if cut.size else stem
        yield EncodedImage(key, encode_image(image, output.kind, output.compress_level), image.shape, str(image.dtype))
