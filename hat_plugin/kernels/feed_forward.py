"""A normalised MLP in training, on the CPU by kernels of our own: it keeps its input and nothing else.

torch keeps, for each pixel of 180 channels, the normalised ones, 360 before and 360 after the GELU. Here the backward
pass makes them again, a block of pixels at a time, and that takes less time than writing and reading them. Products are
in fp32, or in bf16 by AMX where autocast or the weights say so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels import products, tile_gradients, tile_products
from hat_plugin.kernels.library import FeedForwardGradientArguments, require
from hat_plugin.kernels.operands import Layer, Norm, check_fit


def takes(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether `feed_forward` is for such operands: real ones that a kernel takes, or fake ones that stand for such."""
    real = products.takes(x, *weights) or tile_products.takes_cast(x, *weights)
    return real or products.would_take(x, *weights) or tile_products.would_take_cast(x, *weights)


def feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer) -> Tensor:
    """x + down(GELU(up(norm(x)))), with gradients of x and all weights; operands as `takes` wants them.

    Args:
        x: (B, H, W, C).
        norm: layer normalisation, weight and bias (C).
        up: to any number of channels; its `gelu` says nothing.
        down: back to C.

    Returns:
        (B, H, W, C), in x's type.

    Raises:
        ValueError: shapes or dtypes do not fit each other.
        RuntimeError: memory ran out.
    """
    parameters = norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias
    half = torch.is_autocast_enabled('cpu') or up.weight.dtype == torch.bfloat16
    with torch.autocast('cpu', enabled=False):
        result: Tensor = _FeedForward.apply(x, *parameters, _Way(norm.eps, half))
    return result


class _Way(NamedTuple):
    """What `feed_forward` is besides its tensors; half: products are in bf16."""

    eps: float
    half: bool

    def layers(self, parameters: Sequence[Tensor | None]) -> tuple[Norm, Layer, Layer]:
        """The operands in the types that are multiplied."""
        scale, offset, up, up_bias, down, down_bias = parameters
        assert not (scale is None or offset is None or up is None or down is None)
        if self.half:
            up, down = up.bfloat16(), down.bfloat16()
        return Norm(scale, offset, self.eps), Layer(up, up_bias, gelu=True), Layer(down, down_bias)


class _FeedForward(torch.autograd.Function):
    """See `feed_forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *parameters, ctx.way = rest
        ctx.save_for_backward(x, *parameters)
        if isinstance(x, FakeTensor):
            return torch.empty_like(x)
        norm, up, down = ctx.way.layers(parameters)
        if ctx.way.half:
            return tile_products.feed_forward(x, norm, up, down)
        return products.product(x, up, down, norm=norm, add=x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        way: _Way = ctx.way
        with torch.autocast('cpu', enabled=False):
            if torch.is_grad_enabled():  # a gradient of this gradient may be asked for
                wanted = [t for t, needed in zip((x, *parameters), ctx.needs_input_grad, strict=False) if needed]
                result = plain_feed_forward(x, *way.layers(parameters))
                found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
                return *(next(found) if needed else None for needed in ctx.needs_input_grad[:7]), None
            gradients: Sequence[Tensor | None]
            if isinstance(x, FakeTensor):
                gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in (x, *parameters)]
            else:
                differentiate = tile_gradients.feed_forward_gradient if way.half else feed_forward_gradient
                gradients = differentiate(x, grad, *way.layers(parameters))
            results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
            for number, (gradient, tensor) in enumerate(zip(gradients, (x, *parameters), strict=True)):
                if gradient is not None and ctx.needs_input_grad[number]:
                    results[number] = gradient.to(tensor.dtype)
            return tuple(results)


def plain_feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer) -> Tensor:
    """The same by torch's operators."""
    dtype, (scale, offset, eps) = up.weight.dtype, norm
    normed = F.layer_norm(x.to(scale.dtype), scale.shape, scale, offset.to(scale.dtype), eps).to(dtype)
    hidden = F.gelu(F.linear(normed, up.weight, None if up.bias is None else up.bias.to(dtype)))
    return x + F.linear(hidden, down.weight, None if down.bias is None else down.bias.to(dtype)).to(x.dtype)


def feed_forward_gradient(
    x: Tensor, grad: Tensor, norm: Norm, up: Layer, down: Layer, *, library: ctypes.CDLL | None = None
) -> tuple[Tensor, ...]:
    """The gradients of `feed_forward`, the same from run to run by as many threads.

    Args:
        x: as there, like the others.
        grad: of the result, (B, H, W, C).
        norm: as there.
        up: as there.
        down: as there.
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
