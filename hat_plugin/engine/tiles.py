"""A picture through a network in tiles that overlap and are blended; the same code serves restoring and validation.

Tiles lie on the window grid of the whole picture, so that windowed attention cuts the picture at the same lines. Where
two tiles overlap, the outer quarter of each one's overlap (nearest to its cut, where the network saw no context)
counts nothing, and between the quarters the weight passes from one tile to the other along a straight line. At the
picture's own border there is no cut and the weight is one. The weights add up to one in each pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hat_plugin.engine.memory import is_out_of_memory, largest_fitting_tile
from hat_plugin.engine.progress import progress as progress_bar

logger = logging.getLogger(__name__)

DEFAULT_OVERLAP = 32
SMALLEST_SHRUNK_TILE = 32


@dataclass(frozen=True)
class TileGrid:
    """How pictures are cut; lengths in pixels of the input.

    Args:
        tile: side of a tile, a multiple of `multiple`, at least twice it.
        overlap: pixels that neighbours share, a multiple of `multiple`, at most half a tile.
        multiple: the network's window; tiles start at multiples of it.
    """

    tile: int
    overlap: int
    multiple: int

    def spans(self, length: int) -> list[tuple[int, int]]:
        """The tiles (start, stop) along a side of `length` pixels; one span if it fits into a tile.

        The last tile is moved inward to the first grid line from which it reaches the picture's end.
        """
        if length <= self.tile:
            return [(0, length)]
        last = _snap_up(length - self.tile, self.multiple)
        starts = [*range(0, last, self.tile - self.overlap), last]
        return [(start, min(start + self.tile, length)) for start in starts]


def tile_grid(tile: int, overlap: int, multiple: int) -> TileGrid:
    """Snap wanted sizes to the window.

    Args:
        tile: wanted side in pixels, at least 1; rounded up to a multiple of `multiple` and to at least twice it.
        overlap: wanted overlap in pixels, at least 0; rounded up likewise, then held to half a tile.
        multiple: the network's window in pixels, at least 1.

    Raises:
        ValueError: for sizes out of range.
    """
    for name, value, least in (('tile', tile, 1), ('overlap', overlap, 0), ('multiple', multiple, 1)):
        if value < least:
            raise ValueError(f'{name} is {value} pixels; it must be at least {least}')
    side = max(_snap_up(tile, multiple), 2 * multiple)
    widest_overlap = side // 2 // multiple * multiple
    return TileGrid(side, min(_snap_up(overlap, multiple), widest_overlap), multiple)


def blend_weights(spans: list[tuple[int, int]], scale: int) -> list[Tensor]:
    """Weights of the tiles along one axis of the output; they add up to one at each output pixel.

    Args:
        spans: tiles (start, stop) along the axis, input pixels, in order.
        scale: output pixels for one input pixel.

    Returns:
        One float32 tensor for each tile, of (stop - start) * scale values in [0, 1].
    """
    length = spans[-1][1] * scale
    position = torch.arange(length, dtype=torch.float64) + 0.5
    weights = [torch.ones((stop - start) * scale, dtype=torch.float64) for start, stop in spans]
    for index, ((start, _), (_, stop)) in enumerate(zip(spans[1:], spans[:-1], strict=True)):
        shared = (stop - start) * scale
        middle = (stop + start) * scale / 2
        if shared > 0:
            rise = ((position - middle) / (shared / 2) + 0.5).clamp(0, 1)
        else:
            rise = (position > middle).double()
        weights[index] *= 1 - rise[spans[index][0] * scale : stop * scale]
        weights[index + 1] *= rise[start * scale : spans[index + 1][1] * scale]
    total = torch.zeros(length, dtype=torch.float64)
    for (start, stop), weight in zip(spans, weights, strict=True):
        total[start * scale : stop * scale] += weight
    return [
        (weight / total[start * scale : stop * scale]).float()
        for (start, stop), weight in zip(spans, weights, strict=True)
    ]


def tiled_forward(
    net: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    scale: int,
    tile: int | Literal['auto'] | None = None,
    overlap: int = DEFAULT_OVERLAP,
    multiple: int = 16,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Put a picture of any size through `net`, whole or in tiles, without gradients.

    When memory runs out the tile halves, a warning says so, and the whole picture starts again; a picture is never
    put together from tiles of a failed pass. A network whose output pixel depends on input no farther away than a
    quarter of the overlap gives the same picture in tiles as whole.

    Args:
        net: maps (B, C, h, w) to (B, C', h * scale, w * scale) for any h and w, in evaluation mode; a module, or any
            callable around one.
        image: picture, (B, C, H, W), any floating dtype.
        scale: enlargement, a whole number from 1 up.
        tile: side of a tile in input pixels; None: the whole picture at once; 'auto': whole if the memory that is
            free now suffices by the estimate of ``engine.memory``, else the largest tile that fits (where `net` is
            no module, nothing can be estimated: whole, and smaller on failure).
        overlap: input pixels that neighbouring tiles share. Both are snapped to `multiple`, see `tile_grid`.
        multiple: the network's window in input pixels; tiles start at multiples of it.
        progress: show a bar where there is more than one tile.
        device: where the network computes; default: where `image` is. Only tiles are moved there.

    Returns:
        Output picture, (B, C', H * scale, W * scale), float32, on the CPU.

    Raises:
        ValueError: for sizes out of range, or when `net` enlarges by another factor than `scale`.
        torch.OutOfMemoryError, MemoryError, RuntimeError: when the smallest tile does not fit, as the allocator
            raised it. Any other error of `net` comes through at once.
    """
    if image.ndim != 4 or min(image.shape) < 1:
        raise ValueError(f'image has shape {tuple(image.shape)}; it must be (B, C, H, W) with no empty side')
    if scale < 1:
        raise ValueError(f'scale is {scale}; it must be a whole number from 1 up')
    device = image.device if device is None else torch.device(device)
    side = _first_tile(net, image, scale, tile, multiple, device)
    while True:
        grid = tile_grid(side, overlap, multiple)
        output, failure = _attempt(net, image, grid, scale, progress, device)
        if output is not None:
            return output
        side = _smaller_tile(grid, image, failure)
        if device.type == 'cuda':
            torch.cuda.empty_cache()


def _attempt(
    net: Callable[[Tensor], Tensor], image: Tensor, grid: TileGrid, scale: int, progress: bool, device: torch.device
) -> tuple[Tensor | None, Exception | None]:
    """One pass over the picture: (output, None), or (None, the allocator's error)."""
    try:
        return _run_tiles(net, image, grid, scale, progress, device), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The traceback holds the frames of the failed pass, and these hold its tensors: let them go before a retry.
        return None, error.with_traceback(None)


def _run_tiles(
    net: Callable[[Tensor], Tensor], image: Tensor, grid: TileGrid, scale: int, progress: bool, device: torch.device
) -> Tensor:
    """The picture tile by tile; any failure ends it."""
    height, width = image.shape[-2:]
    rows, columns = grid.spans(height), grid.spans(width)
    cells = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
    row_weights, column_weights = blend_weights(rows, scale), blend_weights(columns, scale)
    canvas: Tensor | None = None
    with torch.no_grad():  # not inference_mode: what the network caches here must be usable in training afterwards
        for row, column in progress_bar(
            cells, description='tiles', unit='tile', disable=not progress or len(cells) == 1
        ):
            (top, bottom), (left, right) = rows[row], columns[column]
            piece = net(image[..., top:bottom, left:right].to(device))
            _check_size(piece, (bottom - top, right - left), scale)
            piece = piece.detach().to('cpu', torch.float32)
            if len(cells) == 1:
                return piece
            if canvas is None:
                canvas = torch.zeros(*piece.shape[:2], height * scale, width * scale)
            weight = row_weights[row][:, None] * column_weights[column]
            canvas[..., top * scale : bottom * scale, left * scale : right * scale].addcmul_(piece, weight)
    assert canvas is not None
    return canvas


def _check_size(piece: Tensor, side: tuple[int, int], scale: int) -> None:
    wanted = (side[0] * scale, side[1] * scale)
    if tuple(piece.shape[-2:]) != wanted:
        raise ValueError(
            f'the network made {tuple(piece.shape[-2:])} pixels out of {side}; scale {scale} wants {wanted}: '
            f'give the scale the network was built with'
        )


def _first_tile(
    net: Callable[[Tensor], Tensor],
    image: Tensor,
    scale: int,
    tile: int | Literal['auto'] | None,
    multiple: int,
    device: torch.device,
) -> int:
    whole = max(image.shape[-2:])
    if isinstance(tile, int):
        return tile
    if tile is None or not isinstance(net, nn.Module):
        return whole
    smallest = max(2 * multiple, SMALLEST_SHRUNK_TILE)
    reserve = 4 * image.numel() * scale**2 if device.type == 'cpu' else 0  # the canvas
    side = largest_fitting_tile(
        net, image.shape, multiple=multiple, dtype=image.dtype, device=device, smallest=smallest, reserve=reserve
    )
    if side < whole:
        logger.info('the picture of %d x %d goes in tiles of %d pixels', *image.shape[-1:-3:-1], side)
    return side


def _smaller_tile(grid: TileGrid, image: Tensor, failure: Exception | None) -> int:
    """Half the side that ran out of memory; raises the failure where that would be too small."""
    side = min(grid.tile, max(image.shape[-2:]))
    smallest = max(2 * grid.multiple, SMALLEST_SHRUNK_TILE)
    half = max(_snap_up(side // 2, grid.multiple), smallest)
    if half >= side:
        assert failure is not None
        raise failure
    logger.warning(
        'out of memory with tiles of %d pixels; the picture starts again with %d (%s)',
        side,
        half,
        str(failure).splitlines()[0] if str(failure) else type(failure).__name__,
    )
    return half


def _snap_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
