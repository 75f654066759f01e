"""Linear layers and 3x3 convolutions on a GPU, without gradients, by Triton kernels of our own.

What they are for: HAT's widths, 180, 60 and 540, are no multiples of 8, for which cuBLAS falls back to slow kernels and
cuDNN to copies that pad; and a normalisation, GELU or residual by an operator of its own costs a pass over memory.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hat_plugin.kernels import triton_launch
from hat_plugin.kernels.operands import Layer, Norm, check_fit, check_fused, ordinary
from hat_plugin.kernels.products import choice
from hat_plugin.kernels.triton_launch import power_of_two

_LARGE = ((8, 0), (9, 0), (10, 0), (10, 3))  # those with the 160 KB of shared memory that fp32 takes
_WIDEST = 192  # channels of a pixel; more would not fit into registers


class _Blocks(NamedTuple):
    """Pixels of a program, channels that it makes at a time, and how it is compiled."""

    rows: int
    wide: int
    warps: int
    stages: int


# The fastest of a dozen each, HAT over 1024x1024 pixels in bf16 on an H100.
_LINEAR = _Blocks(64, 64, 4, 2)
_FEED_FORWARD = _Blocks(64, 32, 4, 2)
_CONVOLUTION = _Blocks(128, 64, 4, 1)


def takes(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether these kernels are the ones to take: plain tensors on a GPU, x of at most 192 channels.

    Args:
        x: pixels; fp32, or the weights' type.
        weights: fp32, bf16 or fp16, all the same; those of a layer (outputs, inputs, ...) first.

    HAT_PRODUCTS=torch never takes them.
    """
    device_type = 'cuda' if x.is_cuda else 'cpu'
    if choice() not in (('auto', 'triton') if x.is_cuda else ('triton',)) or not ordinary(device_type, x, *weights):
        return False
    dtypes = {weight.dtype for weight in weights if weight is not None}
    if len(dtypes) != 1 or weights[0] is None or weights[0].shape[1] > _WIDEST:
        return False
    (dtype,) = dtypes
    if dtype not in triton_launch.DTYPES:
        return False
    return x.dtype in (dtype, torch.float32) and _present(x.device, dtype)


@functools.cache
def _present(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether triton can run there."""
    if device.type != 'cuda':
        return importlib.util.find_spec('triton') is not None and triton_launch.interpreted()
    fits = dtype != torch.float32 or torch.cuda.get_device_capability(device) in _LARGE
    return fits and triton_launch.works(device)


@functools.lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    return importlib.import_module('hat_plugin.kernels.triton_product_kernels')


def linear(
    x: Tensor,
    layer: Layer,
    *,
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """layer(norm(x)) + add + scaled[0] * scaled[1].

    Args:
        x: (B, H, W, C), fp32 or the weight's type.
        layer: a linear one, without a GELU.
        norm: comes first.
        add: is added, (B, H, W, outputs); its type is the result's.
        scaled: is added: an image like `add`, and the factor of each channel, (1 or B, 1, 1, outputs).

    Returns:
        (B, H, W, outputs), in the type of `add`, else of the weight; and norm(x) in the weight's type, else x.

    Raises:
        ValueError: the operands do not fit each other.
    """
    check_fused(x, (layer,), norm, add, scaled)
    x, weight = x.contiguous(), layer.weight.contiguous()
    outputs, inputs = weight.shape
    out = x.new_empty((*x.shape[:-1], outputs), dtype=weight.dtype if add is None else add.dtype)
    rows = x.numel() // inputs
    normed = x if norm is None else torch.empty_like(x, dtype=weight.dtype)
    features, factor = (None, None) if scaled is None else (scaled[0].contiguous(), scaled[1].contiguous())
    shared = factor is not None and factor.numel() == outputs
    block, wide = min(_LINEAR.rows, power_of_two(rows)), min(_LINEAR.wide, power_of_two(outputs))
    with torch.cuda.device_of(x):
        _kernels().linear_kernel[(-(-rows // block),)](
            *(x, *_norm(norm), weight, layer.bias, None if add is None else add.contiguous(), features, factor),
            *(normed, out, rows, rows if shared else rows // x.shape[0]),
            INPUTS=inputs,
            OUTPUTS=outputs,
            **_parts(inputs),
            NORM=norm is not None,
            BIAS=layer.bias is not None,
            ADD=add is not None,
            SCALED=scaled is not None,
            **triton_launch.arithmetic(weight),
            BLOCK=block,
            BLOCK_OUT=wide,
            num_warps=_LINEAR.warps,
            num_stages=_LINEAR.stages,
        )
    return out, normed


def feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer) -> Tensor:
    """x + down(GELU(up(norm(x)))).

    Args:
        x: (..., C), fp32 or the weights' type.
        norm: over the channels.
        up: a linear layer from C to any number of channels, with a bias.
        down: a linear layer back to C, with a bias.

    Returns:
        A tensor like x, contiguous.

    Raises:
        ValueError: the operands do not fit each other, or a layer has no bias.
    """
    check_fused(x, (up, down), norm, x)
    if up.bias is None or down.bias is None:
        raise ValueError('a layer without a bias: this kernel takes two with one')
    x, weight1, weight2 = x.contiguous(), up.weight.contiguous(), down.weight.contiguous()
    hidden, channels = weight1.shape
    out = torch.empty_like(x)
    rows = x.numel() // channels
    block = min(_FEED_FORWARD.rows, power_of_two(rows))
    with torch.cuda.device_of(x):
        _kernels().feed_forward_kernel[(-(-rows // block),)](
            *(x, *_norm(norm), weight1, up.bias, weight2, down.bias, out, rows),
            CHANNELS=channels,
            HIDDEN=hidden,
            **_parts(channels),
            **triton_launch.arithmetic(weight1),
            BLOCK=block,
            BLOCK_HIDDEN=min(_FEED_FORWARD.wide, power_of_two(hidden)),
            num_warps=_FEED_FORWARD.warps,
            num_stages=_FEED_FORWARD.stages,
        )
    return out


def convolution(x: Tensor, layer: Layer, *, add: Tensor | None = None) -> Tensor:
    """A 3x3 convolution that keeps the size, a GELU if the layer has one, and + add.

    Args:
        x: (B, H, W, C), in the weight's type.
        layer: weight (outputs, C, 3, 3).
        add: is added at the end, (B, H, W, outputs); its type is the result's.

    Returns:
        (B, H, W, outputs), contiguous, in the type of `add`, else of the weight.

    Raises:
        ValueError: the operands do not fit each other.
    """
    check_fit(x, (layer._replace(gelu=False),))
    if add is not None and add.shape != (*x.shape[:-1], layer.weight.shape[0]):
        raise ValueError(f'add {tuple(add.shape)} does not fit x {tuple(x.shape)} and {layer.weight.shape[0]} outputs')
    x, weight = x.contiguous(), layer.weight.contiguous(memory_format=torch.channels_last)
    outputs, inputs = weight.shape[:2]
    out = x.new_empty((*x.shape[:-1], outputs), dtype=weight.dtype if add is None else add.dtype)
    rows = x.numel() // inputs
    block, wide = min(_CONVOLUTION.rows, power_of_two(rows)), min(_CONVOLUTION.wide, power_of_two(outputs))
    with torch.cuda.device_of(x):
        _kernels().convolution_kernel[(-(-rows // block), -(-outputs // wide))](
            *(x, weight, layer.bias, None if add is None else add.contiguous(), out, rows, *x.shape[1:3]),
            INPUTS=inputs,
            OUTPUTS=outputs,
            **_parts(inputs),
            BIAS=layer.bias is not None,
            GELU=layer.gelu,
            ADD=add is not None,
            **triton_launch.arithmetic(weight),
            BLOCK=block,
            BLOCK_OUT=wide,
            num_warps=_CONVOLUTION.warps,
            num_stages=_CONVOLUTION.stages,
        )
    return out


def _norm(norm: Norm | None) -> tuple[Any, ...]:
    return (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)


def _parts(channels: int) -> dict[str, int]:
    """The two blocks of a pixel's channels."""
    main = max(16, 1 << (channels.bit_length() - 1))
    return {'MAIN': main, 'REST': power_of_two(channels - main) if channels > main else 0}
