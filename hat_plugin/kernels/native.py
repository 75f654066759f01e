"""From tensors to the pointers and strides of the C interface. All sizes are checked here: beyond is no safety net."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hat_plugin.kernels.library import WindowAttentionArguments, strides

DTYPES = (torch.float32, torch.bfloat16)


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
    _check_rest(q, k, v, bias, mask, (q.shape[1], q.shape[2], k.shape[2]), (q.shape[2], k.shape[2]))


def check_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    num_heads: int,
    window_size: int,
    overlap_size: int,
    shift_size: int,
) -> None:
    """Raise a ValueError unless the arguments of `image_window_attention` fit each other."""
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape or min(num_heads, window_size) < 1:
        raise ValueError(f'q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: give three of (B, H, W, C)')
    if q.shape[1] % window_size or q.shape[2] % window_size or q.shape[3] % num_heads or 0 in q.shape[1:]:
        raise ValueError(
            f'an image of {q.shape[1]}x{q.shape[2]} and {q.shape[3]} channels does not fall into windows of '
            f'{window_size} and {num_heads} heads: pad it to multiples'
        )
    if overlap_size < window_size or (overlap_size - window_size) % 2:
        raise ValueError(f'overlap_size {overlap_size} is not window_size {window_size} plus an even number')
    if not 0 <= shift_size < window_size or (shift_size and (masks is None or overlap_size != window_size)):
        raise ValueError(
            f'shift_size {shift_size} with window_size {window_size}, overlap_size {overlap_size} and '
            f'{"no " if masks is None else ""}masks: give 0, or less than the window, with masks and without an overlap'
        )
    queries, keys = window_size**2, overlap_size**2
    _check_rest(q, k, v, bias, masks if shift_size else None, (num_heads, queries, keys), (3, queries, keys))


def _check_rest(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, bias_shape: tuple, mask_shape: tuple
) -> None:
    """Raise a ValueError unless bias and mask have these shapes and all dtypes and devices are right."""
    if tuple(bias.shape) != bias_shape:
        raise ValueError(f'bias {tuple(bias.shape)} does not fit: give {bias_shape}')
    if mask is not None and tuple(mask.shape) != mask_shape:
        raise ValueError(f'mask {tuple(mask.shape)} does not fit: give {mask_shape}')
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES or bias.dtype not in DTYPES:
        raise ValueError(
            f'q {q.dtype}, k {k.dtype}, v {v.dtype}, bias {bias.dtype}: give fp32 or bf16, the same for q, k and v'
        )
    if any(x is not None and x.device.type != 'cpu' for x in (q, k, v, bias, mask)):
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
    geometry = {
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
    _call(library, (q, k, v, out), placed, bias, mask, scale, threads, geometry)
    return out


def run_image(
    library: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int,
    shift_size: int,
    threads: int | None = None,
) -> Tensor:
    """Call the kernel on an image; arguments as in `image_window_attention`, checked by `check_image`."""
    out = q.new_empty(q.shape)
    _, height, width, channels = q.shape
    head = channels // num_heads
    geometry = {
        'heads': num_heads,
        'width': head,
        'rows': height // window_size,
        'columns': width // window_size,
        'height_q': height,
        'width_q': width,
        'window_height': window_size,
        'window_width': window_size,
        'height_k': height,
        'width_k': width,
        'key_height': overlap_size,
        'key_width': overlap_size,
        'margin': (overlap_size - window_size) // 2,
        'shift': shift_size,
        'mask_mode': 2 if shift_size else 0,
    }
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    placed = [strides(x.stride(0), x.stride(1), x.stride(2), head) for x in (q, k, v, out)]
    _call(library, (q, k, v, out), placed, bias, masks if shift_size else None, scale, threads, geometry)
    return out


def _call(
    library: ctypes.CDLL,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    placed: list[ctypes.Array[ctypes.c_int64]],
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
    threads: int | None,
    geometry: dict[str, int],
) -> None:
    """Fill the struct and call; q, k, v and out, which is written, come in this order."""
    bias = bias.contiguous()
    mask = None if mask is None else mask.to(bias.dtype).contiguous()
    arguments = WindowAttentionArguments(
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
        **geometry,
    )
    if library.hat_window_attention(ctypes.byref(arguments)):
        raise RuntimeError(f'no memory left for the attention of {tuple(tensors[0].shape)}: give smaller tiles')
