"""MATLAB's antialiased bicubic `imresize`, the way in which all low-resolution images of the SR literature are made.

OpenCV's and PIL's bicubic differ from it (no antialiasing there, another kernel parameter or padding here), and the
published PSNR of a network is not reached on images made by them.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import sparse

from hat_plugin.errors import DataError

KERNEL = 'MATLAB imresize bicubic (a = -0.5), antialiased, symmetric padding, double precision, rounded once at the end'
"""What a manifest says about images made here."""

_KERNEL_WIDTH = 4.0


def imresize(image: np.ndarray, scale: float | None = None, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Resize as MATLAB's ``imresize(image, scale)`` or ``imresize(image, [height width])``.

    Integer images are computed in double precision, rounded (half up) and clipped once at the end: what the field's
    scripts do with ``imwrite(imresize(im2double(image), scale))``, and what the usual bicubic figures are measured on.
    (MATLAB given the integers themselves rounds between the two dimensions also, which moves some pixels by one level
    and Set5 x2 by 0.01 dB.) Floats are neither rounded nor clipped. The dimension that shrinks most goes first.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16, float32 or float64; any range, any channel order.
        scale: factor for both sides; the output's sides are ceil(side * scale).
        size: the output's (height, width) instead; each dimension then has its own factor.

    Returns:
        The resized image, same dtype and number of dimensions.

    Raises:
        ValueError: the dtype, the number of dimensions, the scale or the size is not one of these.
    """
    if image.dtype not in (np.uint8, np.uint16, np.float32, np.float64) or image.ndim not in (2, 3) or not image.size:
        raise ValueError(
            f'imresize takes a non-empty HW or HWC image in uint8, uint16, float32 or float64, '
            f'not {image.dtype} of shape {image.shape}'
        )
    sides, factors = _target(image.shape[:2], scale, size)
    result = image.astype(np.float32 if image.dtype == np.float32 else np.float64)
    for axis in sorted((0, 1), key=lambda axis: factors[axis]):
        result = _resize_axis(result, axis, sides[axis], factors[axis])
    if np.issubdtype(image.dtype, np.integer):
        np.floor(result + 0.5, out=result)
        np.clip(result, 0, np.iinfo(image.dtype).max, out=result)
    return result.astype(image.dtype, copy=False)


def mod_crop(image: np.ndarray, modulus: int) -> np.ndarray:
    """Cut rows at the bottom and columns at the right, so that both sides are multiples of `modulus`.

    Args:
        image: (H, W) or (H, W, C).
        modulus: usually the scale.

    Returns:
        A view of the image.

    Raises:
        DataError: a side is smaller than the modulus.
    """
    height, width = (side - side % modulus for side in image.shape[:2])
    if height <= 0 or width <= 0:
        raise DataError(
            f'an image of {image.shape[1]}x{image.shape[0]} pixels is smaller than the {modulus}x{modulus} that its '
            f'sides must be multiples of; leave it out'
        )
    return image[:height, :width]


def _target(
    shape: tuple[int, ...], scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    if (scale is None) == (size is None):
        raise ValueError('imresize takes either a scale or a size')
    if size is not None:
        if min(size) < 1:
            raise ValueError(f'imresize cannot make an image of size {size}; both sides must be at least 1')
        return (int(size[0]), int(size[1])), (size[0] / shape[0], size[1] / shape[1])
    if not (scale and math.isfinite(scale) and scale > 0):
        raise ValueError(f'imresize takes a scale above 0, not {scale}')
    # 1e-9: 1/scale is not exact in binary, and ceil() would turn 49 * (1 / 49) = 1 + 2e-16 into 2.
    height, width = (max(1, math.ceil(side * scale - 1e-9)) for side in shape)
    return (height, width), (float(scale), float(scale))


def _resize_axis(image: np.ndarray, axis: int, length: int, factor: float) -> np.ndarray:
    if factor == 1 and length == image.shape[axis]:
        return image
    moved = np.ascontiguousarray(np.moveaxis(image, axis, 0))
    values = _weights(image.shape[axis], length, factor, str(image.dtype)) @ moved.reshape(len(moved), -1)
    return np.ascontiguousarray(np.moveaxis(values.reshape(length, *moved.shape[1:]), 0, axis))


@functools.lru_cache(maxsize=64)
def _weights(length_in: int, length_out: int, factor: float, dtype: str) -> sparse.csr_array:
    """The resizing of one dimension as a banded matrix.

    Returns:
        (length_out, length_in); each row sums to 1.

    Source: MATLAB's documented method: output pixel k (from 1) lies at k / factor + (1 - 1 / factor) / 2 of the input;
        when shrinking, the kernel is stretched by 1 / factor; pixels outside are mirrored, the edge pixel repeated.
        Kernel: R. Keys, Cubic convolution interpolation for digital image processing, 1981, a = -0.5.
    """
    stretch = min(factor, 1.0)
    width = _KERNEL_WIDTH / stretch
    centre = np.arange(1, length_out + 1) / factor + 0.5 * (1 - 1 / factor)
    left = np.floor(centre - width / 2)
    columns = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = stretch * _cubic(stretch * (centre[:, None] - columns))
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.mod(columns.astype(np.int64) - 1, 2 * length_in)
    folded = np.where(folded < length_in, folded, 2 * length_in - 1 - folded)
    rows = np.broadcast_to(np.arange(length_out)[:, None], folded.shape)
    used = weights != 0
    matrix = sparse.coo_array((weights[used], (rows[used], folded[used])), shape=(length_out, length_in))
    return matrix.tocsr().astype(dtype)


def _cubic(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
