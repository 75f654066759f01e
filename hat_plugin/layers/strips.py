"""Inference a strip at a time: what a strip needs stays in the cache, and memory beyond a few feature maps is bounded.

The values are those of the whole: windows do not see each other, and a convolution's strip is computed with the rows
around it that it can see. Strips are for inference alone. Training keeps activations anyway; a compiler or tracer would
unroll the loops; on 'meta' and fake tensors nothing is computed. An estimate of memory goes through a few of them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels.operands import Layer, is_traced
from hat_plugin.layers.windows import window_partition, window_reverse

# Tokens of a chunk of windows for one CPU core: 9 MB of fp32 queries, keys and values. Fewer gained nothing, many
# more take memory. A GPU wants larger chunks to be busy.
_CORE_TOKENS = 4096
_CUDA_TOKENS = 1 << 17
_MAP_TOKENS = 1 << 14  # pixels of a strip of rows of a feature map, at least
_CUDA_MAP_TOKENS = 1 << 20  # the same on a GPU, where eight strips are eight times the launches
_MAP_SHARE = 8  # and that part of a large one: little beside the whole, and few rows computed twice
_HEAD_BYTES = 32 << 20  # of the largest feature map of a strip on the way up
_CUDA_HEAD_BYTES = 512 << 20


_estimating = ContextVar('estimating', default=False)  # of this thread alone: another may restore a picture
T = TypeVar('T')


@contextlib.contextmanager
def estimating() -> Iterator[None]:
    """Within it fake tensors go by strips, too, and of many strips two are made, as large as any.

    The memory in use is then that of a whole pass, in little time; values are nobody's.
    """
    token = _estimating.set(True)
    try:
        yield
    finally:
        _estimating.reset(token)


def enough(strips: Iterable[T]) -> Iterable[T]:
    """All of them; for `estimating` the first and one of the middle, with neighbours on all sides."""
    if not _estimating.get():
        return strips
    every = list(strips)
    return [every[0], every[len(every) // 2]] if len(every) > 1 else every


def use_strips(x: Tensor, module: nn.Module) -> bool:
    """Whether this pass of a module over x may go strip by strip."""
    if torch.is_grad_enabled() or module.training or is_traced():
        return False
    return x.device.type in ('cpu', 'cuda') and (not isinstance(x, FakeTensor) or _estimating.get())


def like_weights(x: Tensor, layer: nn.Module | Layer) -> Tensor:
    """x in the type of a layer's weights, where they were converted and the residual stream was not."""
    weight = getattr(layer, 'weight', None)
    return x.to(weight.dtype) if isinstance(weight, Tensor) else x


def chunk_windows(x: Tensor, window_size: int) -> int:
    """How many windows to work on at a time, 1 or more."""
    tokens = _CUDA_TOKENS if x.is_cuda else _CORE_TOKENS * torch.get_num_threads()
    return max(1, tokens // (window_size * window_size))


def is_one_chunk(x: Tensor) -> bool:
    """Whether all windows of (B, H, W, C) are worked on at a time anyway: cutting them out then gains no memory."""
    batch, height, width, _ = x.shape
    return batch * height * width <= (_CUDA_TOKENS if x.is_cuda else _CORE_TOKENS * torch.get_num_threads())


def map_rows(x: Tensor) -> int:
    """How many rows of a feature map (B, H, W, C) to work on at a time, 1 or more."""
    _, height, width, _ = x.shape
    least = _CUDA_MAP_TOKENS if x.is_cuda else _MAP_TOKENS
    return max(1, max(least, height * width // _MAP_SHARE) // width)


class Block(NamedTuple):
    """A rectangle of windows of one sample.

    Attributes:
        sample: its number in the batch.
        top: first row of pixels.
        left: first column of pixels.
        height: in pixels.
        width: in pixels; a block that leaves the image at the bottom or right comes round at the other side.
    """

    sample: int
    top: int
    left: int
    height: int
    width: int


def _share(length: int, most: int) -> int:
    """The size of even shares of a length, at most `most` each."""
    return math.ceil(length / math.ceil(length / most))


def blocks_of(batch: int, rows: int, columns: int, window_size: int, most: int) -> Iterator[Block]:
    """Cut (batch, rows, columns) windows into blocks of at most `most` windows (1 or more), of about one size."""
    wide = _share(columns, most)
    high = _share(rows, max(1, most // columns))
    corners = itertools.product(range(batch), range(0, rows, high), range(0, columns, wide))
    for sample, row, column in enough(corners):
        height, width = min(high, rows - row), min(wide, columns - column)
        yield Block(sample, *(n * window_size for n in (row, column, height, width)))


def _pieces(start: int, length: int, size: int) -> list[tuple[int, int]]:
    """An interval on a ring as (start, length) of one or two intervals."""
    start %= size
    first = min(length, size - start)
    return [(start, first), (0, length - first)] if first < length else [(start, length)]


def read_windows(x: Tensor, block: Block, window_size: int) -> Tensor:
    """A block of an image (B, H, W, C) as windows (n, N, C)."""
    rows = []
    for top, height in _pieces(block.top, block.height, x.shape[1]):
        row = [
            x[block.sample, top : top + height, left : left + width]
            for left, width in _pieces(block.left, block.width, x.shape[2])
        ]
        rows.append(torch.cat(row, 1) if len(row) > 1 else row[0])
    return window_partition((torch.cat(rows) if len(rows) > 1 else rows[0])[None], window_size)


def write_windows(x: Tensor, block: Block, windows: Tensor, window_size: int) -> None:
    """Put what `read_windows` read, changed, back into an image of the same size."""
    part = window_reverse(windows, window_size, block.height, block.width)[0]
    from_row = 0
    for top, height in _pieces(block.top, block.height, x.shape[1]):
        from_column = 0
        for left, width in _pieces(block.left, block.width, x.shape[2]):
            x[block.sample, top : top + height, left : left + width] = part[
                from_row : from_row + height, from_column : from_column + width
            ]
            from_column += width
        from_row += height


def flat_steps(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules in their order, those inside an nn.Sequential one by one."""
    steps: list[nn.Module] = []
    for module in modules:
        steps += flat_steps(module) if isinstance(module, nn.Sequential) else [module]
    return steps


def _halo(step: nn.Module) -> int:
    """How many rows beyond its own an output row sees, in output rows."""
    return int(step.padding[0]) if isinstance(step, nn.Conv2d) else 0


def _factor(step: nn.Module) -> int:
    """Output rows for an input row."""
    return int(getattr(step, 'upscale_factor', getattr(step, 'scale', 1)))


def _rows_at_a_time(steps: list[nn.Module], width: int, itemsize: int, most: int) -> int:
    """Rows of input for which the largest feature map on the way up stays within a fixed number of bytes."""
    factor, largest = 1, 1
    for step in steps:
        factor *= _factor(step)
        if isinstance(step, nn.Conv2d):
            largest = max(largest, step.out_channels * factor * factor)
    return max(1, most // (largest * width * itemsize))


def strips_of_rows(
    steps: list[nn.Module], source: Callable[[int, int], Tensor], height: int, rows: int
) -> Iterator[tuple[int, int, Tensor]]:
    """What a chain of convolutions makes of an image, a strip of rows at a time.

    Args:
        steps: convolutions of stride 1 that keep the size, pixel shuffles, nearest-neighbour steps, and what works
            pixel by pixel.
        source: makes the input rows [top, bottom) of the chain, (B, C, bottom - top, W).
        height: rows of the input.
        rows: of the input for a strip; 1 or more.

    Yields:
        First and last (exclusive) row of the output and those rows, (B, C', bottom - top, W'). All of it at once if
        rows >= height. Nothing is kept here: delete a strip before the next is asked for, and one alone is in memory.
    """
    reach, factor = 0.0, 1
    for step in steps:
        factor *= _factor(step)
        reach += _halo(step) / factor
    margin = math.ceil(reach)
    for top in enough(range(0, height, rows)):
        bottom = min(height, top + rows)
        low, high = max(0, top - margin), min(height, bottom + margin)
        yield top * factor, bottom * factor, _rows_of_a_chain(steps, source(low, high), low, height, (top, bottom))


def _rows_of_a_chain(steps: list[nn.Module], x: Tensor, low: int, height: int, kept: tuple[int, int]) -> Tensor:
    """What a chain makes of rows x from `low` on, of an image of `height` rows, where it stems from the rows kept."""
    (top, bottom), high = kept, low + x.shape[2]
    for step in steps:
        x = step(like_weights(x, step))
        low, high, height, top, bottom = (n * _factor(step) for n in (low, high, height, top, bottom))
        # Rows at a cut saw zeros where the image goes on: leave them out. At the image's border zeros are right.
        above, below = _halo(step) * (low > 0), _halo(step) * (high < height)
        x = x[:, :, above : high - low - below]
        low, high = low + above, high - below
    return x[:, :, top - low : bottom - low]


def apply_in_strips(steps: list[nn.Module], x: Tensor) -> Tensor:
    """A chain of convolutions on its way up, such that the result is the largest feature map that there is.

    Args:
        steps: as for `strips_of_rows`.
        x: (B, C, H, W).

    Returns:
        (B, C', H * scale, W * scale), contiguous.
    """
    batch, _, height, width = x.shape
    most = _CUDA_HEAD_BYTES if x.is_cuda else _HEAD_BYTES
    rows = _rows_at_a_time(steps, width, x.element_size() * batch, most)
    scale = math.prod(_factor(step) for step in steps)
    result: Tensor | None = None
    for top, bottom, strip in strips_of_rows(steps, lambda top, bottom: x[:, :, top:bottom], height, rows):
        if result is None:
            result = strip.new_empty(batch, strip.shape[1], height * scale, width * scale)
        result[:, :, top:bottom] = strip
        del strip
    assert result is not None
    return result
