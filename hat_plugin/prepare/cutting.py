"""From one source picture to the encoded images of every output; runs in the worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hat_plugin.data.bicubic import imresize, mod_crop
from hat_plugin.data.lmdb_writer import EncodedImage, encode_image
from hat_plugin.errors import DataError
from hat_plugin.prepare.pixels import read_stored
from hat_plugin.prepare.plan import Cut, Output, Picture


@dataclass(frozen=True)
class CutResult:
    """What a worker hands back: images by output name, or why there are none."""

    images: dict[str, list[EncodedImage]]
    left_out: str = ''
    error: str = ''


def cut_picture(task: tuple[Picture, Cut, tuple[Output, ...]]) -> CutResult:
    """Read a picture and its degraded versions (or make these), cut all into sub-images and encode these.

    A picture that cannot be used is told in the result and not raised, so that the others go on.
    """
    picture, cut, outputs = task
    try:
        truth = read_stored(picture.hr, drop_alpha=cut.drop_alpha)
        shape = truth.shape[:2]
        height, width = (side - side % cut.modulus for side in shape)
        if min(height, width) < max(cut.smallest, 1):
            return CutResult({}, left_out=_too_small(picture, shape, (height, width)))
        truth = mod_crop(truth, cut.modulus)
        images: dict[str, list[EncodedImage]] = {}
        for output in outputs:
            whole = truth
            if output.role == 'lq':
                whole = degraded(picture, truth, shape, output.scale, drop_alpha=cut.drop_alpha)
            images[output.name] = list(_encoded(picture.stem, whole, cut, output))
    except DataError as error:
        return CutResult({}, error=str(error))
    return CutResult(images)


def degraded(
    picture: Picture, truth: np.ndarray, shape: tuple[int, int], scale: int, *, drop_alpha: bool
) -> np.ndarray:
    """The degraded picture: the published one, cropped as the ground truth was, or the bicubic.

    Args:
        truth: (H, W, C), cropped: sides multiples of the scale.
        shape: (height, width) before the crop.

    Returns:
        (H / scale, W / scale, C).

    Raises:
        DataError: the published file does not fit the ground truth.
    """
    if scale not in picture.lr:
        return imresize(truth, 1 / scale)
    image = read_stored(picture.lr[scale], drop_alpha=drop_alpha)
    size, hr_size = image.shape[1::-1], shape[::-1]
    if size not in fitting_sizes(hr_size, scale):
        raise DataError(misfit(picture, scale, size, hr_size))
    if image.shape[2] != truth.shape[2]:
        raise DataError(
            f'{picture.lr[scale]}: has {image.shape[2]} channels and {picture.hr} has {truth.shape[2]}; unpack both '
            f'again, or store both gray or both in colour'
        )
    return np.ascontiguousarray(image[: truth.shape[0] // scale, : truth.shape[1] // scale])


def fitting_sizes(hr_size: tuple[int, ...], scale: int) -> set[tuple[int, ...]]:
    """(width, height) of degraded pictures that fit: of the mod-cropped ground truth, or rounded up as MATLAB does."""
    return {tuple(side // scale for side in hr_size), tuple(-(-side // scale) for side in hr_size)}


def _too_small(picture: Picture, shape: tuple[int, ...], cropped: tuple[int, int]) -> str:
    crop = '' if cropped == shape[:2] else f', cropped {cropped[1]}x{cropped[0]},'
    return f'{picture.hr}: {shape[1]}x{shape[0]}{crop} is too small'


def misfit(picture: Picture, scale: int, lr_size: tuple[int, ...], hr_size: tuple[int, ...]) -> str:
    """What to say of a published degraded picture that does not belong to its ground truth."""
    if scale == 1:
        return (
            f'{picture.lr[scale]}: {lr_size[0]}x{lr_size[1]}, but its ground truth {picture.hr} is '
            f'{hr_size[0]}x{hr_size[1]}; the two are no pair: unpack both again, or correct which belong together'
        )
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


def _encoded(stem: str, whole: np.ndarray, cut: Cut, output: Output) -> Iterator[EncodedImage]:
    scale = output.scale
    truth_shape = (whole.shape[0] * scale, whole.shape[1] * scale)
    for number, rectangle in enumerate(rectangles(truth_shape, cut), 1):
        top, left, height, width = (value // scale for value in rectangle)
        image = np.ascontiguousarray(whole[top : top + height, left : left + width])
        key = f'{stem}_s{number:03d}' if cut.size else stem
        yield EncodedImage(key, encode_image(image, output.kind, output.compress_level), image.shape, str(image.dtype))
