"""A normalised MLP in training, on the CPU in fp32, by kernels of our own: it keeps its input and nothing else.

torch keeps, for each pixel of 180 channels, the normalised ones, 360 before and 360 after the GELU. Here the backward
pass makes them again, a block of pixels at a time, and that takes less time than writing and reading them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels import products
from hat_plugin.kernels.library import FeedForwardGradientArguments, require
from hat_plugin.kernels.operands import Layer, Norm, check_fit


def takes(*tensors: Tensor | None) -> bool:
    """Whether `feed_forward` is for such operands: those of `products.takes`, or fake ones that stand for them."""
    return products.takes(*tensors) or products.would_take(*tensors)


def feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer, *, residual: bool = True) -> Tensor:
    """down(GELU(up(norm(x)))), with gradients of x and all weights; operands as `takes` wants them.

    Args:
        x: (B, H, W, C).
        norm: layer normalisation, weight and bias (C).
        up: to any number of channels; its `gelu` says nothing.
        down: back to C.
        residual: whether x is added.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: shapes or dtypes do not fit each other.
        RuntimeError: memory ran out.
    """
    parameters = norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias
    result: Tensor = _FeedForward.apply(x, *parameters, norm.eps, residual)
    return result


class _FeedForward(torch.autograd.Function):
    """See `feed_forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *parameters, ctx.eps, ctx.residual = rest
        ctx.save_for_backward(x, *parameters)
        if isinstance(x, FakeTensor):
            return torch.empty_like(x)
        norm, up, down = _layers(parameters, ctx.eps)
        return products.product(x, up, down, norm=norm, add=x if ctx.residual else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient may be asked for
            wanted = [t for t, needed in zip((x, *parameters), ctx.needs_input_grad, strict=False) if needed]
            result = plain_feed_forward(x, *_layers(parameters, ctx.eps), residual=ctx.residual)
            found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:7]), None, None
        gradients: Sequence[Tensor | None]
        if isinstance(x, FakeTensor):
            gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in (x, *parameters)]
        else:
            gradients = feed_forward_gradient(x, grad, *_layers(parameters, ctx.eps), residual=ctx.residual)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if wanted else None for gradient, wanted in needed), None, None


def _layers(parameters: Any, eps: float) -> tuple[Norm, Layer, Layer]:
    scale, offset, up, up_bias, down, down_bias = parameters
    return Norm(scale, offset, eps), Layer(up, up_bias, gelu=True), Layer(down, down_bias)


def plain_feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer, *, residual: bool = True) -> Tensor:
    """The same by torch's operators."""
    hidden = F.gelu(F.linear(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps), up.weight, up.bias))
    result = F.linear(hidden, down.weight, down.bias)
    return x + result if residual else result


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
    """The gradients of `feed_forward`, the same from run to run by as many threads.

    Args:
        x: as there, like the others.
        grad: of the result, (B, H, W, C).
        norm: as there.
        up: as there.
        down: as there.
        residual: as there.
        library: the kernels; None for those of this machine.

    Returns:
        Those of x, the normalisation's weight and bias, up's and down's (of a bias also where there is none).

    Raises:
        ValueError: shapes or dtypes do not fit each other.
        RuntimeError: memory ran out.
    """
    given = check_fit(x, (up, down), norm, add=grad)
    channels, hidden = down.weight.shape
    if channels != x.shape[-1] or any(t.dtype != torch.float32 or t.device.type != 'cpu' for t in given.values()):
        raise ValueError(f'x {tuple(x.shape)} to {channels} channels: give an MLP back to as many, all fp32 on the CPU')
    x, grad, up_weight, down_weight = (t.contiguous() for t in (x, grad, up.weight, down.weight))
    # (x - mean) / std * scale + offset is left at its first step: up takes the others over.
    folded, folded_bias = up_weight * norm.weight, up_weight @ norm.bias
    if up.bias is not None:
        folded_bias += up.bias
    dx, d_up, d_down = (torch.empty_like(t) for t in (x, up_weight, down_weight))
    d_up_bias, d_down_bias = x.new_empty(hidden), x.new_empty(channels)
    call = FeedForwardGradientArguments(
        pixels=x.numel() // channels,
        channels=channels,
        hidden=hidden,
        residual=residual,
        threads=torch.get_num_threads(),
        eps=norm.eps,
    )
    call.x, call.grad, call.down = x.data_ptr(), grad.data_ptr(), down_weight.data_ptr()
    call.up, call.up_bias, call.dx = folded.data_ptr(), folded_bias.data_ptr(), dx.data_ptr()
    call.dup, call.dup_bias = d_up.data_ptr(), d_up_bias.data_ptr()
    call.ddown, call.ddown_bias = d_down.data_ptr(), d_down_bias.data_ptr()
    products.succeed((library or require()).hat_feed_forward_gradient(ctypes.byref(call)), x)
    d_scale, d_offset = (up_weight * d_up).sum(0), d_up_bias @ up_weight
    return dx, d_scale, d_offset, (d_up * norm.weight).addr_(d_up_bias, norm.bias), d_up_bias, d_down, d_down_bias
