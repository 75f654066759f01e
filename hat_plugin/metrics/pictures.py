"""What the metrics here make of the two pictures that they are given."""

from __future__ import annotations

import numpy as np
from basicsr.metrics.metric_util import reorder_image, to_y_channel


def prepared(picture: np.ndarray, crop_border: int, input_order: str, test_y_channel: bool = False) -> np.ndarray:
    """A picture as BasicSR's metrics take it, ready to be measured.

    Args:
        picture: (H, W, C), BGR or gray, or (H, W); in 0..255, uint8 or float.
        crop_border: pixels left out along each side.
        input_order: 'HWC', or 'CHW' for (C, H, W).
        test_y_channel: make luma (BT.601, 16..235, not rounded) of BGR; a gray picture stays as it is.

    Returns:
        (H, W, C), float64, in 0..255.

    Raises:
        ValueError: `crop_border` is negative or leaves nothing.
    """
    picture = reorder_image(picture, input_order=input_order)
    height, width, channels = picture.shape
    if crop_border < 0 or 2 * crop_border >= min(height, width):
        raise ValueError(f'crop_border: {crop_border} leaves nothing of a picture of {height}x{width}')
    picture = picture[crop_border : height - crop_border, crop_border : width - crop_border]
    if test_y_channel and channels == 3:
        picture = to_y_channel(picture)
    return picture.astype(np.float64)


def prepared_pair(
    img: np.ndarray, img2: np.ndarray, crop_border: int, input_order: str, test_y_channel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of one size, each `prepared`.

    Raises:
        ValueError: they are of two sizes, or as in `prepared`.
    """
    if img.shape != img2.shape:
        raise ValueError(f'pictures of {img.shape} and {img2.shape} cannot be compared')
    first, second = (prepared(picture, crop_border, input_order, test_y_channel) for picture in (img, img2))
    return first, second
