"""Windows: what is cut can be put back, and masks and indices agree with their definition pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hat_plugin.layers.windows import (
    MASKED,
    overlapping_position_index,
    overlapping_windows,
    relative_position_index,
    shift_masks,
    shifted_regions,
    window_partition,
    window_reverse,
)


@pytest.mark.parametrize(('side', 'height', 'width'), [(4, 8, 12), (7, 7, 14), (2, 6, 2)])
def test_partition_and_reverse(side: int, height: int, width: int) -> None:
    x = torch.randn(2, height, width, 3)
    windows = window_partition(x, side)
    assert windows.shape == (2 * (height // side) * (width // side), side * side, 3)
    last = x[1, height - side :, width - side :].reshape(-1, 3)
    assert torch.equal(windows[-1], last)
    assert torch.equal(window_reverse(windows, side, height, width), x)


@pytest.mark.parametrize(('side', 'overlap'), [(4, 6), (4, 4), (8, 12), (7, 9)])
def test_overlapping_windows_are_those_of_unfold(side: int, overlap: int) -> None:
    x = torch.randn(2, 2 * side, 3 * side, 5)
    columns = F.unfold(x.permute(0, 3, 1, 2), overlap, padding=(overlap - side) // 2, stride=side)
    expected = columns.unflatten(1, (5, overlap * overlap)).permute(0, 3, 2, 1).flatten(0, 1)
    assert torch.equal(overlapping_windows(x, side, overlap), expected)


@pytest.mark.parametrize(('side', 'shift'), [(4, 2), (7, 3), (8, 4)])
@pytest.mark.parametrize(('rows', 'columns'), [(3, 2), (1, 1), (1, 3), (2, 1)])
def test_masks_part_what_came_round(side: int, shift: int, rows: int, columns: int) -> None:
    """Two tokens may meet if they are as far apart in the original image as in the window."""
    height, width = rows * side, columns * side
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'), -1)[None]
    rolled = window_partition(torch.roll(places, (-shift, -shift), (1, 2)), side)
    plain = window_partition(places, side)

    def apart(x: torch.Tensor) -> torch.Tensor:
        return x[:, :, None] - x[:, None]

    expected = (apart(rolled) != apart(plain)).any(-1) * MASKED
    got = torch.full((1, rows, columns, side**2, side**2), float('nan'))
    masks = shift_masks(side, shift)
    for top, left, high, wide, mask in shifted_regions(rows, columns):
        assert got[:, top : top + high, left : left + wide].isnan().all()
        got[:, top : top + high, left : left + wide] = 0 if mask is None else masks[mask]
    assert torch.equal(got.flatten(0, 2), expected)


@pytest.mark.parametrize('side', [2, 7, 16])
def test_relative_position_index(side: int) -> None:
    """One row of the table for each displacement, each displacement's row the same everywhere."""
    index = relative_position_index(side)
    y, x = torch.arange(side**2) // side, torch.arange(side**2) % side
    down, right = y[:, None] - y[None], x[:, None] - x[None]
    assert torch.equal(index, (down + side - 1) * (2 * side - 1) + right + side - 1)
    assert index.min() == 0
    assert index.max() == (2 * side - 1) ** 2 - 1


@pytest.mark.parametrize(('side', 'overlap'), [(2, 2), (7, 9), (8, 12), (16, 20), (16, 24)])
def test_overlapping_position_index_is_the_published_one(side: int, overlap: int) -> None:
    index = overlapping_position_index(side, overlap)
    assert index.shape == (side**2, overlap**2)
    query, key = 1, overlap + 1  # second pixel of the first row, second of the second
    offset = side - overlap + 1
    assert index[query, key] == (1 - 0 + offset) * (side + overlap - 1) + (1 - 1 + offset)
    rows = (side + overlap - 1) ** 2
    assert -rows <= index.min() < 0 or overlap == 2
    assert index.max() < rows
