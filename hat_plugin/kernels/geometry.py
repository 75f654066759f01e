"""How images fall into windows and heads, and whether tensors fit that: kernels on raw memory have no other net."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


def empty_image(qkv: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Room for what `run_image` returns."""
    batch, height, width, channels = qkv.shape
    pixels = geometry.window_size**2
    windows = batch * (height * width // pixels)
    softmax = qkv.new_empty((windows, geometry.num_heads, pixels, 2), dtype=torch.float32)
    return qkv.new_empty((batch, height, width, channels // 3)), softmax


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
    if qkv.ndim != 4 or qkv.shape[3] % 3:
        raise ValueError(f'qkv {tuple(qkv.shape)}: give (B, H, W, 3 * C)')
    check_geometry((qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3), masks, geometry)
    check_bias((qkv,), bias, masks, geometry)


def check_geometry(image: tuple[int, int, int], masks: Tensor | None, geometry: Geometry) -> None:
    """Raise a ValueError unless an image (H, W, C) falls into windows and heads, and masks are there if needed."""
    g, (window, overlap, shift) = geometry, (geometry.window_size, geometry.overlap_size, geometry.shift_size)
    height, width, channels = image
    if min(g.num_heads, window, *image) < 1:
        raise ValueError(
            f'an image {image} in windows of {window} and {g.num_heads} heads: give (H, W, C) and one of each at least'
        )
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


def check_bias(tensors: tuple[Tensor, ...], bias: Tensor, masks: Tensor | None, geometry: Geometry) -> None:
    """Raise a ValueError unless the bias of an image's windows, and masks where they are shifted, fit tensors."""
    queries, keys = geometry.window_size**2, geometry.overlap_size**2
    shape = (geometry.num_heads, queries, keys)
    _check_rest(tensors, bias, masks if geometry.shift_size else None, shape, (3, queries, keys))


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
