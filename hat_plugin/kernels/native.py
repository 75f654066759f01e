"""From tensors to the pointers and strides of the C interface. All sizes are checked here: beyond is no safety net."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hat_plugin.kernels.library import WindowAttentionArguments, WindowGradientArguments, strides

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Geometry:
    """How an image falls into windows and heads.

    Attributes:
        scale: factor of the products.
        num_heads: number of heads; divides the channels.
        window_size: side of a window in pixels; divides height and width.
        overlap_size: side of a window of keys, which shares its centre; window_size where keys do not overlap.
        shift_size: pixels by which windows are moved down and right, round the border.
    """

    scale: float
    num_heads: int
    window_size: int
    overlap_size: int
    shift_size: int

    @property
    def margin(self) -> int:
        """By how many pixels a window of keys reaches over its window."""
        return (self.overlap_size - self.window_size) // 2


def empty_windows(q: Tensor) -> Tensor:
    """Room for a result of q's shape (windows, heads, N, d); in memory (windows, N, heads, d)."""
    windows, heads, queries, width = q.shape
    return q.new_empty((windows, queries, heads, width)).transpose(1, 2)


def check_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> None:
    """Raise a ValueError unless the arguments of `window_attention` fit each other."""
    shapes = f'q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}'
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f'{shapes} do not fit: give (windows, heads, N, d) and twice (windows, heads, M, d)')
    if 0 in k.shape[1:]:
        raise ValueError(f'{shapes}: give one head, key and channel at least')
    _check_rest((q, k, v), bias, mask, (q.shape[1], q.shape[2], k.shape[2]), (q.shape[2], k.shape[2]))


def check_image(qkv: Tensor, bias: Tensor, masks: Tensor | None, geometry: Geometry) -> None:
    """Raise a ValueError unless the arguments of `image_window_attention` fit each other."""
    g, (window, overlap, shift) = geometry, (geometry.window_size, geometry.overlap_size, geometry.shift_size)
    if qkv.ndim != 4 or min(g.num_heads, window) < 1 or qkv.shape[3] % 3 or 0 in qkv.shape[1:]:
        raise ValueError(f'qkv {tuple(qkv.shape)}: give (B, H, W, 3 * C), one head and a window of one pixel at least')
    height, width, channels = qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    if height % window or width % window or channels % g.num_heads:
        raise ValueError(
            f'an image of {height}x{width} and {channels} channels does not fall into windows of '
            f'{window} and {g.num_heads} heads: pad it to multiples'
        )
    if overlap < window or (overlap - window) % 2:
        raise ValueError(f'overlap_size {overlap} is not window_size {window} plus an even number')
    if not 0 <= shift < window or (shift and (masks is None or overlap != window)):
        raise ValueError(
            f'shift_size {shift} with window_size {window}, overlap_size {overlap} and '
            f'{"no " if masks is None else ""}masks: give 0, or less than the window, with masks and without an overlap'
        )
    queries, keys = window**2, overlap**2
    shape = (g.num_heads, queries, keys)
    _check_rest((qkv,), bias, masks if shift else None, shape, (3, queries, keys))


def _check_rest(
    tensors: tuple[Tensor, ...],
    bias: Tensor,
    mask: Tensor | None,
    bias_shape: tuple[int, ...],
    mask_shape: tuple[int, ...],
) -> None:
    """Raise a ValueError unless bias and mask have these shapes and all dtypes and devices are right."""
    if tuple(bias.shape) != bias_shape:
        raise ValueError(f'bias {tuple(bias.shape)} does not fit: give {bias_shape}')
    if mask is not None and tuple(mask.shape) != mask_shape:
        raise ValueError(f'mask {tuple(mask.shape)} does not fit: give {mask_shape}')
    dtypes = [x.dtype for x in tensors]
    if len(set(dtypes)) > 1 or dtypes[0] not in DTYPES or bias.dtype not in DTYPES:
        raise ValueError(
            f'queries, keys and values of {", ".join(map(str, dtypes))}, bias of {bias.dtype}: give fp32 or bf16, the '
            'same for queries, keys and values'
        )
    if any(x is not None and x.device.type != 'cpu' for x in (*tensors, bias, mask)):
        raise ValueError('a tensor is not on the CPU: this kernel is for the CPU alone')


def run_windows(
    library: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
    threads: int | None = None,
) -> Tensor:
    """Call the kernel on windows; arguments as in `window_attention`, checked by `check_windows`."""
    out = empty_windows(q)
    _, heads, queries, width = q.shape
    sizes = {
        'heads': heads,
        'width': width,
        'rows': 1,
        'columns': 1,
        'margin': 0,
        'shift': 0,
        'height_q': 1,
        'width_q': queries,
        'window_height': 1,
        'window_width': queries,
        'height_k': 1,
        'width_k': k.shape[2],
        'key_height': 1,
        'key_width': k.shape[2],
        'mask_mode': 0 if mask is None else 1,
    }
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    placed = [strides(x.stride(0), 0, x.stride(2), x.stride(1)) for x in (q, k, v, out)]
    with _Call((q, k, v, out), placed, bias, mask, scale, threads, sizes) as call:
        call.check(library.hat_window_attention(ctypes.byref(call.arguments)))
    return out


def run_image(
    library: ctypes.CDLL,
    qkv: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    geometry: Geometry,
    threads: int | None = None,
) -> Tensor:
    """Call the kernel on an image; arguments as in `image_window_attention`, checked by `check_image`."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    with _image_call(qkv, out, bias, masks, geometry, threads) as call:
        call.check(library.hat_window_attention(ctypes.byref(call.arguments)))
    return out


def run_image_gradient(
    library: ctypes.CDLL,
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    geometry: Geometry,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `run_image` for qkv, in its shape and dtype, and for the bias, (heads, N, M) in its dtype.

    They do not depend on how the threads take turns, but the bias's sum does on their number.
    """
    grad = grad.contiguous()
    channels, heads = grad.shape[3], geometry.num_heads
    dqkv = qkv.new_empty(qkv.shape)
    dq, dk, dv = targets = list(dqkv.split(channels, dim=3))
    if geometry.margin:  # several windows add to a key
        dkv = dqkv.new_zeros((*grad.shape[:3], 2 * channels), dtype=torch.float32)
        dk, dv = dkv.split(channels, dim=3)
    threads = threads or torch.get_num_threads()
    windows = grad.shape[0] * grad.shape[1] * grad.shape[2] // geometry.window_size**2
    # Two tasks for a thread at the least: they do not end at the same time.
    parts = max(1, min(-(-2 * threads // heads), windows))
    dbias = torch.zeros((parts, *bias.shape), dtype=torch.float32)
    with _image_call(qkv, grad, bias, masks, geometry, threads) as call:
        head = channels // heads
        placed = [strides(x.stride(0), x.stride(1), x.stride(2), head) for x in (dq, dk, dv)]
        pointers = (x.data_ptr() for x in (dq, dk, dv))
        arguments = WindowGradientArguments(call.arguments, *pointers, *placed, dbias.data_ptr(), parts)
        call.check(library.hat_window_attention_gradient(ctypes.byref(arguments)))
    if geometry.margin:
        targets[1].copy_(dk)
        targets[2].copy_(dv)
    return dqkv, dbias.sum(0).to(bias.dtype)


def run_gather(library: ctypes.CDLL, table: Tensor, index: Tensor, threads: int | None = None) -> Tensor:
    """The bias of each pair of tokens: a table (rows, heads) and rows of it (N, M), int64, to (heads, N, M).

    Raises:
        ValueError: other dtypes.
        IndexError: the table has no such row.
    """
    if table.dtype not in DTYPES or index.dtype != torch.int64 or table.device.type != 'cpu':
        raise ValueError(
            f'a table of {table.dtype} on {table.device}, rows {index.dtype}: give fp32 or bf16, and int64'
        )
    table, index = table.contiguous(), index.contiguous()
    (rows, heads), half = table.shape, table.dtype == torch.bfloat16
    out = table.new_empty(heads, *index.shape)
    threads = threads or torch.get_num_threads()
    addresses = (table.data_ptr(), index.data_ptr(), out.data_ptr())
    if library.hat_gather_bias(*addresses, rows, heads, index.numel(), half, threads):
        raise IndexError(
            f'a bias table of {rows} rows does not have all that the position index asks for: '
            'give weights and window_size that belong together'
        )
    return out


def _image_call(
    qkv: Tensor, out: Tensor, bias: Tensor, masks: Tensor | None, geometry: Geometry, threads: int | None
) -> _Call:
    g = geometry
    _, height, width, channels = out.shape
    head = channels // g.num_heads
    sizes = {
        'heads': g.num_heads,
        'width': head,
        'rows': height // g.window_size,
        'columns': width // g.window_size,
        'height_q': height,
        'width_q': width,
        'window_height': g.window_size,
        'window_width': g.window_size,
        'height_k': height,
        'width_k': width,
        'key_height': g.overlap_size,
        'key_width': g.overlap_size,
        'margin': g.margin,
        'shift': g.shift_size,
        'mask_mode': 2 if g.shift_size else 0,
    }
    qkv = qkv if qkv.stride(3) == 1 else qkv.contiguous()
    tensors = (*qkv.split(channels, dim=3), out)
    placed = [strides(x.stride(0), x.stride(1), x.stride(2), head) for x in tensors]
    return _Call(tensors, placed, bias, masks if g.shift_size else None, g.scale, threads, sizes)


class _Call:
    """The struct of a call, and the tensors that must live as long as it is used.

    Args:
        tensors: q, k, v, and the output (or its gradient).
        placed: their strides.
        bias, mask, scale, threads: as in `run_windows`.
        sizes: the other fields.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        placed: list[ctypes.Array[ctypes.c_int64]],
        bias: Tensor,
        mask: Tensor | None,
        scale: float,
        threads: int | None,
        sizes: dict[str, int],
    ) -> None:
        bias = bias.contiguous()
        mask = None if mask is None else mask.to(bias.dtype).contiguous()
        self.shape = tuple(tensors[0].shape)
        self._kept = (*tensors, bias, mask)
        self.arguments = WindowAttentionArguments(
            *(x.data_ptr() for x in tensors[:3]),
            bias.data_ptr(),
            None if mask is None else mask.data_ptr(),
            tensors[3].data_ptr(),
            *placed,
            batch=tensors[0].shape[0],
            half=tensors[0].dtype == torch.bfloat16,
            half_bias=bias.dtype == torch.bfloat16,
            threads=threads or torch.get_num_threads(),
            scale=scale,
            **sizes,
        )

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: Any) -> None:
        self._kept = ()

    def check(self, failed: int) -> None:
        """Raise a RuntimeError where the kernel had no memory."""
        if failed:
            raise RuntimeError(f'no memory left for the attention of {self.shape}: give smaller tiles')
