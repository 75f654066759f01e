"""Transformer blocks over windows on the CPU in bf16 by Intel's matrix units (AMX), without gradients, as one kernel.

A window goes through normalisation, queries, keys and values, attention, projection and MLP before the next one does:
what lies between stays in the second-level cache of a core, and no tensor is made for it.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from hat_plugin.kernels import tile_products
from hat_plugin.kernels.geometry import Geometry, check_bias, check_geometry
from hat_plugin.kernels.library import (
    WindowAttentionArguments,
    WindowBlockArguments,
    require,
    strides,
)
from hat_plugin.kernels.native import image_sizes
from hat_plugin.kernels.operands import Layer, Norm, check_fused

_BUSY = 3 / 4  # of the threads, in the mean, for windows to be what is shared out among them


class BlockLayers(NamedTuple):
    """What a block is made of: x + projection(attention), and an MLP of that, normalised, added to it.

    Attributes:
        norm: of the block's input.
        queries: (3 * C, C): queries, keys and values; (C, C) where keys and values are given.
        projection: of what has attended, (C, C).
        mlp_norm: of what the MLP sees.
        up: its first layer, (hidden, C).
        down: its second, (C, hidden).
    """

    norm: Norm
    queries: Layer
    projection: Layer
    mlp_norm: Norm
    up: Layer
    down: Layer


def takes(x: Tensor, layers: BlockLayers, window_size: int) -> bool:
    """Whether the kernel is the one to take: `tile_products.takes`, and threads share windows out evenly enough."""
    windows, threads = x.shape[:3].numel() // window_size**2, torch.get_num_threads()
    if windows < _BUSY * threads * -(-windows // threads):
        return False
    weights = (part for layer in (layers.queries, layers.projection, layers.up, layers.down) for part in layer[:2])
    return tile_products.takes(x, *weights)


def window_block(
    x: Tensor,
    layers: BlockLayers,
    bias: Tensor,
    geometry: Geometry,
    *,
    masks: Tensor | None = None,
    keys_and_values: Tensor | None = None,
    branch: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """y + down(GELU(up(mlp_norm(y)))) of y = x + projection(attention) + branch[0] * branch[1].

    Args:
        x: the stream, (B, H, W, C), fp32 or bf16.
        layers: of the block, weights in bf16.
        bias: (heads, N, M), fp32 or bf16.
        geometry: how the image falls into windows and heads.
        masks: `hat_plugin.layers.windows.shift_masks`, (3, N, N); needed where windows are shifted.
        keys_and_values: (B, H + 2 * margin, W + 2 * margin, 2 * C), bf16, with the margin of windows of keys around the
            image; None: they come of the window's own pixels.
        branch: features (B, H, W, C), in x's type, and the factor of each channel, (1 or B, ..., C).
        out: takes the result, (B, H, W, C) in x's type, contiguous; may be the features. None: a new tensor does.
        library: the kernels; None for those of this machine.

    Returns:
        (B, H, W, C), in x's type.

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    x = x.contiguous()
    out = torch.empty_like(x) if out is None else out
    _check(x, layers, bias, geometry, masks, keys_and_values, branch, out)
    kept: list[Tensor] = [x, out]
    call = WindowBlockArguments(_attention(x, bias, masks, keys_and_values, geometry, kept))
    for name, layer, norm in (
        ('queries', layers.queries, layers.norm),
        ('projection', layers.projection, None),
        ('up', layers.up._replace(gelu=True), layers.mlp_norm),
        ('down', layers.down, None),
    ):
        setattr(call, name, tile_products.arguments(x, layer, norm, kept))
    call.down.out = out.data_ptr()
    if branch is not None:
        factor = branch[1].float().reshape(-1, x.shape[3]).expand(x.shape[0], -1)
        call.branch, call.factor = (tile_products.address(part, kept) for part in (branch[0], factor))
    failed = (library or require()).hat_window_block(ctypes.byref(call))
    tile_products.check(failed, 'a block', call.queries.pixels)
    return out


def _check(
    x: Tensor,
    layers: BlockLayers,
    bias: Tensor,
    geometry: Geometry,
    masks: Tensor | None,
    keys_and_values: Tensor | None,
    branch: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """Raise a ValueError unless all fit each other: beyond is raw memory."""
    if x.ndim != 4:
        raise ValueError(f'x {tuple(x.shape)}: give (B, H, W, C)')
    batch, height, width, channels = x.shape
    check_geometry((height, width, channels), masks, geometry)
    check_bias((x,), bias, masks, geometry)
    check_fused(x, (layers.queries,), layers.norm)
    check_fused(x, (layers.projection,), None, x, branch)
    check_fused(x, (layers.up, layers.down), layers.mlp_norm, x)
    given = keys_and_values is not None
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        'queries': (layers.queries.weight, ((1 if given else 3) * channels, channels), torch.bfloat16),
        'out': (out, tuple(x.shape), x.dtype),
    }
    if branch is not None:
        wanted['branch'] = branch[0], tuple(x.shape), x.dtype
    if keys_and_values is not None:
        padded = (batch, height + 2 * geometry.margin, width + 2 * geometry.margin, 2 * channels)
        wanted['keys_and_values'] = keys_and_values, padded, torch.bfloat16
    elif geometry.margin:
        raise ValueError(f'overlap_size {geometry.overlap_size} needs keys_and_values of what is around each window')
    for name, (tensor, shape, dtype) in wanted.items():
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, dtype, x.device):
            raise ValueError(f'{name} is {tuple(tensor.shape)}, {tensor.dtype}: give {shape}, {dtype}, on {x.device}')
    if not out.is_contiguous() or out.data_ptr() == x.data_ptr():
        raise ValueError('out is x, or is not contiguous: give another tensor')


def _attention(
    x: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    keys_and_values: Tensor | None,
    geometry: Geometry,
    kept: list[Tensor],
) -> WindowAttentionArguments:
    """Where windows and their biases lie, and keys and values if they are given."""
    batch, height, width, channels = x.shape
    around = 2 * geometry.margin
    sizes = image_sizes(height, width, channels, geometry)
    sizes |= {'height_k': height + around, 'width_k': width + around, 'margin': 0}  # keys begin where their windows do
    call = WindowAttentionArguments(
        batch=batch,
        half=True,
        half_bias=bias.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        scale=geometry.scale,
        **sizes,
    )
    call.bias = tile_products.address(bias, kept)
    if geometry.shift_size and masks is not None:
        call.mask = tile_products.address(masks.to(bias.dtype), kept)
    if keys_and_values is not None:
        last = keys_and_values if keys_and_values.stride(3) == 1 else keys_and_values.contiguous()
        for name, part in zip('kv', last.split(channels, dim=3), strict=True):
            kept.append(part)
            setattr(call, name, part.data_ptr())
            setattr(call, f'{name}_stride', strides(part.stride(0), part.stride(1), part.stride(2), sizes['width']))
    return call
