"""Windows of an image and the positions of tokens within them: pure functions on NHWC tensors, no parameters.

A window of `window_size` pixels a side is a sequence of `N = window_size ** 2` tokens, row by row. An overlapping
window shares its centre with a window and is `overlap_size` pixels a side.

Source: "Activating More Pixels in Image Super-Resolution Transformer" (CVPR 2023), sections 3.2 and 3.3; the shift is
that of "Swin Transformer" (ICCV 2021), section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The published code separates what must not meet by -100, not by -inf. In fp32 exp(-100) vanishes beside any logit
# that training produces, so the two agree to well under 1e-6; -100 is kept so that weights mean exactly what they did.
MASKED = -100.0


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cut an image into windows.

    Args:
        x: (B, H, W, C); H and W are multiples of window_size.
        window_size: side of a window in pixels.

    Returns:
        (B * H/window_size * W/window_size, N, C), windows row by row, tokens row by row.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int, batch: int = -1) -> Tensor:
    """Undo `window_partition`.

    Args:
        windows: (B * height/window_size * width/window_size, N, C).
        window_size: side of a window in pixels.
        height: H of the image, a multiple of window_size.
        width: W of the image, a multiple of window_size.
        batch: B, for graphs in which there may be no windows to tell it; -1: as they do.

    Returns:
        (B, height, width, C).
    """
    channels = windows.shape[-1]
    x = windows.reshape(batch, height // window_size, width // window_size, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def overlapping_windows(x: Tensor, window_size: int, overlap_size: int) -> Tensor:
    """Cut an image into windows that reach over their neighbours, zeros beyond the border.

    The image is padded once and seen through strides; the only other copy is the result.

    Args:
        x: (B, H, W, C); H and W are multiples of window_size.
        window_size: step between windows in pixels.
        overlap_size: side of an overlapping window in pixels; overlap_size - window_size is even.

    Returns:
        (B * H/window_size * W/window_size, overlap_size ** 2, C), in the order of `window_partition`.
    """
    margin = (overlap_size - window_size) // 2
    return windows_of_padded(F.pad(x, (0, 0, margin, margin, margin, margin)), window_size, overlap_size)


def windows_of_padded(x: Tensor, window_size: int, overlap_size: int) -> Tensor:
    """`overlapping_windows` of an image that already has its margin of (overlap_size - window_size) / 2 all around."""
    channels = x.shape[-1]
    x = x.unfold(1, overlap_size, window_size).unfold(2, overlap_size, window_size)
    return x.permute(0, 1, 2, 4, 5, 3).reshape(-1, overlap_size * overlap_size, channels)


class Region(NamedTuple):
    """A block of windows that share one mask.

    Attributes:
        top: first row of windows.
        left: first column of windows.
        rows: number of rows of windows.
        columns: number of columns of windows.
        mask: index into `shift_masks`, or None where nothing is masked.
    """

    top: int
    left: int
    rows: int
    columns: int
    mask: int | None


def shifted_regions(rows: int, columns: int, shifted: bool = True) -> list[Region]:
    """The blocks into which a cyclically shifted image falls: interior, last column, last row and corner of windows.

    After a roll by -shift_size only the windows of the last row and column hold pixels that came round from the other
    side of the image, so that three small masks serve every image and none of (windows, heads, N, N) is ever needed.

    Args:
        rows: number of rows of windows.
        columns: number of columns of windows.
        shifted: whether there was a roll; else all windows are of one kind.

    Returns:
        The regions that are not empty, which tile the image: interior, last column, last row, corner.
    """
    if not shifted:
        return [Region(0, 0, rows, columns, None)]
    regions = [
        Region(0, 0, rows - 1, columns - 1, None),
        Region(0, columns - 1, rows - 1, 1, 1),
        Region(rows - 1, 0, 1, columns - 1, 0),
        Region(rows - 1, columns - 1, 1, 1, 2),
    ]
    return [region for region in regions if region.rows and region.columns]


def shift_masks(window_size: int, shift_size: int) -> Tensor:
    """The masks of windows in the last row, the last column and the corner of a cyclically shifted image.

    Args:
        window_size: side of a window in pixels.
        shift_size: pixels by which the image was rolled, 0 < shift_size < window_size.

    Returns:
        (3, N, N), fp32: 0 where two tokens were neighbours before the roll, `MASKED` where they were not.
    """
    came_round = torch.arange(window_size) >= window_size - shift_size
    by_row = came_round[:, None].expand(window_size, window_size).flatten()
    by_column = came_round[None, :].expand(window_size, window_size).flatten()
    parted = torch.stack(
        [
            by_row[:, None] != by_row[None, :],
            by_column[:, None] != by_column[None, :],
            (by_row[:, None] != by_row[None, :]) | (by_column[:, None] != by_column[None, :]),
        ]
    )
    return parted * MASKED


def relative_position_index(window_size: int) -> Tensor:
    """Which row of the bias table each pair of tokens of a window uses.

    Args:
        window_size: side of a window in pixels.

    Returns:
        (N, N), int64, in [0, (2 * window_size - 1) ** 2).
    """
    side = torch.arange(window_size)
    delta = side[:, None] - side[None, :] + window_size - 1
    rows = delta * (2 * window_size - 1)
    return _pairs(rows, delta)


def overlapping_position_index(window_size: int, overlap_size: int) -> Tensor:
    """Which row of the bias table each pair of a window's token and an overlapping window's token uses.

    As published: the offset that should make every entry non-negative is too small by overlap_size - 2, so
    that many entries are negative and count from the table's end, as Python's do. Trained weights rely on it.

    Args:
        window_size: side of a window in pixels (queries).
        overlap_size: side of an overlapping window in pixels (keys).

    Returns:
        (N, overlap_size ** 2), int64, valid for a table of (window_size + overlap_size - 1) ** 2 rows.
    """
    delta = torch.arange(overlap_size)[None, :] - torch.arange(window_size)[:, None] + window_size - overlap_size + 1
    rows = delta * (window_size + overlap_size - 1)
    return _pairs(rows, delta)


def _pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """Sum of the vertical part (q, k) and the horizontal part (q, k) over all pairs of positions: (q * q, k * k)."""
    queries, keys = rows.shape
    return (rows[:, None, :, None] + columns[None, :, None, :]).reshape(queries * queries, keys * keys)
