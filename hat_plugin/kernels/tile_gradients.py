"""Gradients of layers on the CPU in bf16 by Intel's matrix units (AMX), by blocks of pixels that stay in the cache."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from hat_plugin.kernels.library import (
    TileConvolutionGradientArguments,
    TileFeedForwardGradientArguments,
    TileLinearGradientArguments,
    require,
)
from hat_plugin.kernels.operands import Layer, Norm, check_fused, turned
from hat_plugin.kernels.tile_products import add_scaled, address, arguments, check


class LinearGradients(NamedTuple):
    """Those of `tile_products.linear`'s operands, in fp32 but for x and features; None where there is no such operand.

    Attributes:
        x: like x.
        weight: (outputs, C).
        bias: (outputs), also where there is none.
        norm_weight: (C).
        norm_bias: (C).
        features: (B, ..., outputs), bf16.
        factor: like the factor.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    features: Tensor | None
    factor: Tensor | None


def linear_gradient(
    x: Tensor,
    grad: Tensor,
    layer: Layer,
    *,
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
    library: ctypes.CDLL | None = None,
) -> LinearGradients:
    """The gradients of `tile_products.linear`, the same from run to run by as many threads.

    Args:
        x: as there, (B, ..., C).
        grad: of the result, (B, ..., outputs), fp32 or bf16.
        layer: as there.
        norm: as there.
        add: a gradient of norm(x) that comes from elsewhere, like x, in bf16.
        scaled: as there: features, and the factor of each of their channels, (B or 1, ..., outputs).
        library: the kernels; None for those of this machine.

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    check_fused(x, (layer,), norm, grad, scaled)
    if add is not None and (add.shape != x.shape or add.dtype != torch.bfloat16):
        raise ValueError(f'add {tuple(add.shape)}, {add.dtype}: give {tuple(x.shape)}, bf16')
    outputs, inputs = layer.weight.shape
    x = x.contiguous()
    kept: list[Tensor] = [x]
    call = TileLinearGradientArguments(
        layer=arguments(x, layer, norm, kept),
        back=arguments(grad.contiguous(), Layer(layer.weight), None, kept, turned=True),
    )

    def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        kept.append(x.new_empty(shape, dtype=dtype))
        return kept[-1]

    of_x, of_weight, of_bias = made(*x.shape, dtype=x.dtype), made(inputs, outputs), made(outputs)
    of_norm = (None, None) if norm is None else (made(inputs), made(inputs))
    of_scaled = (None, None) if scaled is None else (made(*grad.shape, dtype=torch.bfloat16), made(*scaled[1].shape))
    add_scaled(call.layer, scaled, kept)
    call.back.out, call.back.add = of_x.data_ptr(), address(add, kept)
    names = 'd_weight', 'd_bias', 'd_norm_weight', 'd_norm_bias', 'd_scaled', 'd_factor'
    for name, result in zip(names, (of_weight, of_bias, *of_norm, *of_scaled), strict=True):
        setattr(call, name, address(result, kept))
    failed = (library or require()).hat_tile_linear_gradient(ctypes.byref(call))
    check(failed, "a layer's gradients", call.layer.pixels)
    return LinearGradients(of_x, turned(of_weight).contiguous(), of_bias, *of_norm, *of_scaled)


def feed_forward_gradient(
    x: Tensor, grad: Tensor, norm: Norm, up: Layer, down: Layer, *, library: ctypes.CDLL | None = None
) -> tuple[Tensor, ...]:
    """The gradients of `tile_products.feed_forward`, the same from run to run by as many threads.

    Args:
        x: as there, (B, ..., C).
        grad: of the result, like x.
        norm: as there.
        up: as there; what it made is computed anew.
        down: as there.
        library: the kernels; None for those of this machine.

    Returns:
        That of x, in its type; in fp32 those of the normalisation's weight and bias, of up's and down's (of a bias also
        where there is none).

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    check_fused(x, (up, down), norm, grad)
    channels, hidden = down.weight.shape
    if channels != x.shape[-1] or grad.dtype != x.dtype:
        raise ValueError(
            f'x {tuple(x.shape)} to {channels} channels, gradient {grad.dtype}: '
            f'give an MLP back to as many, and {x.dtype}'
        )
    x = x.contiguous()
    dx = torch.empty_like(x)
    kept: list[Tensor] = [dx, x]
    d_up, d_down, d_up_bias, d_down_bias, d_scale, d_offset = results = [
        x.new_empty(shape, dtype=torch.float32)
        for shape in ((channels, hidden), (channels, hidden), (hidden,), (channels,), (channels,), (channels,))
    ]
    call = TileFeedForwardGradientArguments(
        up=arguments(x, up, norm, kept),
        from_down=arguments(grad.contiguous(), Layer(down.weight), None, kept, turned=True),
        from_up=arguments(x, Layer(up.weight), None, kept, turned=True),
    )
    call.from_up.out = dx.data_ptr()
    names = 'd_up', 'd_down', 'd_up_bias', 'd_down_bias', 'd_norm_weight', 'd_norm_bias'
    for name, result in zip(names, results, strict=True):
        setattr(call, name, result.data_ptr())
    failed = (library or require()).hat_tile_feed_forward_gradient(ctypes.byref(call))
    check(failed, "an MLP's gradients", call.up.pixels)
    return dx, d_scale, d_offset, turned(d_up).contiguous(), d_up_bias, d_down, d_down_bias


def convolution_gradient(
    x: Tensor, grad: Tensor, *, norm: Norm | None = None, library: ctypes.CDLL | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias of a 3x3 convolution (`tile_products.convolution`) that keeps the size.

    Args:
        x: its input, (B, H, W, C), fp32 or bf16.
        grad: of its result, (B, H, W, outputs), bf16.
        norm: comes before it, pixel by pixel.
        library: the kernels; None for those of this machine.

    Returns:
        (outputs, C, 3, 3), channels last, and (outputs), fp32; the same from run to run by as many threads.

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    if x.ndim != 4 or grad.ndim != 4 or grad.dtype != torch.bfloat16:
        raise ValueError(
            f'x {tuple(x.shape)}, gradient {tuple(grad.shape)}, {grad.dtype}: give (B, H, W, C) each, and bf16'
        )
    inputs, outputs = x.shape[3], grad.shape[3]
    layer = Layer(grad.new_empty(outputs, inputs))
    check_fused(x, (layer,), norm, grad)
    x = x.contiguous()
    kept: list[Tensor] = [x]
    call = TileConvolutionGradientArguments(layer=arguments(x, layer, norm, kept), grad=address(grad, kept))
    call.layer.taps, call.layer.image, call.layer.width = 9, x.shape[1] * x.shape[2], x.shape[2]
    of_weight = x.new_empty((outputs, 3, 3, inputs), dtype=torch.float32)
    of_bias = x.new_empty(outputs, dtype=torch.float32)
    call.d_weight, call.d_bias = of_weight.data_ptr(), of_bias.data_ptr()
    failed = (library or require()).hat_tile_convolution_gradient(ctypes.byref(call))
    check(failed, "a convolution's gradients", call.layer.pixels)
    return of_weight.permute(0, 3, 1, 2), of_bias
