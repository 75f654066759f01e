"""PSNR-B, which counts what is left of the blocks that JPEG makes."""

from __future__ import annotations

import math

import numpy as np

from hat_plugin.metrics.pictures import prepared_pair

BLOCK = 8


def calculate_psnrb(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    input_order: str = 'HWC',
    test_y_channel: bool = False,
    better: str = 'higher',
) -> float:
    """10 log10(255² / (MSE + BEF)), BEF being the blocking effect factor of the restored picture.

    BEF = log2 8 / log2 min(H, W) * (Db - Dn) where Db > Dn, else 0: the squared differences of neighbours, averaged
    over the pairs that the edge of an 8x8 block parts (Db), and over all others (Dn). Of a colour picture it is the
    mean over the channels.

    Source: Yim and Bovik, Quality Assessment of Deblocked Images, TIP 2011, section III. As there, and in the tables of
    QGAC, FBCNN and SwinIR, H (W // 8 - 1) + W (H // 8 - 1) pairs are counted as parted, which for sides that are no
    multiples of 8 is a column or a row less than there are.

    Args:
        img: the restored picture, (H, W, C), BGR or gray, or (H, W); in 0..255, uint8 or float.
        img2: the truth.
        crop_border: pixels left out along each side, a multiple of 8 so that the blocks stay where they are.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: compare luma.
        better: BasicSR's validation hands it over and reads it itself.

    Returns:
        dB; infinity for equal pictures without block edges.

    Raises:
        ValueError: `crop_border` is no multiple of 8, or less than 16 pixels are left; and see `prepared_pair`.
    """
    if crop_border % BLOCK:
        raise ValueError(f'crop_border: {crop_border} cuts through blocks; 0 or a multiple of {BLOCK} is wanted')
    restored, truth = prepared_pair(img, img2, crop_border, input_order, test_y_channel)
    if min(restored.shape[:2]) < 2 * BLOCK:
        raise ValueError(f'PSNR-B: {restored.shape[0]}x{restored.shape[1]} pixels are less than two blocks of {BLOCK}')
    values = [_psnrb(restored[..., channel], truth[..., channel]) for channel in range(restored.shape[2])]
    return float(np.mean(values))


def _psnrb(restored: np.ndarray, truth: np.ndarray) -> float:
    error = float(np.mean((restored - truth) ** 2)) + blocking_effect(restored)
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


def blocking_effect(picture: np.ndarray) -> float:
    """BEF of a picture (H, W), in squared gray levels."""
    height, width = picture.shape
    parted, total = 0.0, 0.0
    for axis in (0, 1):
        squares = np.diff(picture, axis=axis) ** 2
        parted += float(np.take(squares, range(BLOCK - 1, squares.shape[axis], BLOCK), axis=axis).sum())
        total += float(squares.sum())
    parted_pairs = height * (width // BLOCK - 1) + width * (height // BLOCK - 1)
    all_pairs = height * (width - 1) + width * (height - 1)
    excess = parted / parted_pairs - (total - parted) / (all_pairs - parted_pairs)
    return max(0.0, excess) * math.log2(BLOCK) / math.log2(min(height, width))
