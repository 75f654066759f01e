"""Gradients of layers on the CPU in bf16 by Intel's matrix units (AMX), by blocks of pixels that stay in the cache."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hat_plugin.kernels.library import TileFeedForwardGradientArguments, require
from hat_plugin.kernels.operands import Layer, Norm, check_fused, turned
from hat_plugin.kernels.tile_products import arguments, check


def feed_forward_gradient(
    x: Tensor,
    grad: Tensor,
    norm: Norm,
    up: Layer,
    down: Layer,
    *,
    residual: bool = True,
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of `tile_products.feed_forward`, the same from run to run by as many threads.

    Args:
        x: as there, (B, ..., C).
        grad: of the result, like x.
        norm: as there.
        up: as there; what it made is computed anew.
        down: as there.
        residual: as there.
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
        from_down=arguments(grad.contiguous(), Layer(turned(down.weight)), None, kept),
        from_up=arguments(x, Layer(turned(up.weight)), None, kept),
        residual=residual,
    )
    call.from_up.out = dx.data_ptr()
    names = 'd_up', 'd_down', 'd_up_bias', 'd_down_bias', 'd_norm_weight', 'd_norm_bias'
    for name, result in zip(names, results, strict=True):
        setattr(call, name, result.data_ptr())
    failed = (library or require()).hat_tile_feed_forward_gradient(ctypes.byref(call))
    check(failed, "an MLP's gradients", call.up.pixels)
    return dx, d_scale, d_offset, turned(d_up).contiguous(), d_up_bias, d_down, d_down_bias
