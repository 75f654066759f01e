"""Linear layers through the library that was measured fastest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import products, tile_gradients, tile_products
from hat_plugin.kernels.fused_products import kernels_for
from hat_plugin.kernels.operands import Layer, Norm, is_hooked, is_traced
from hat_plugin.layers.strips import like_weights

# torch sends fp32 linear layers to MKL. oneDNN, which torch carries too, took 0.6 to 0.9 of MKL's time for HAT's layers
# over 4,096 tokens on an AMD EPYC (AVX-512). torch's own compiler calls this operator; it is no public interface, so
# that its absence is provided for.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def _memory_is_limited() -> bool:
    """Whether this process has a limit (`ulimit -v`, `-d`): oneDNN's linear layer crashes where an allocation fails."""
    with contextlib.suppress(ImportError):  # not POSIX
        import resource

        kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        return any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds)
    return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, for inference in fp32 on the CPU through oneDNN.

    Args:
        x: (..., channels in).
        weight: (channels out, channels in).
        bias: (channels out), or None.

    Returns:
        (..., channels out).
    """
    onednn = (
        _ONEDNN
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous()
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled('cpu') or is_traced())
        and not _memory_is_limited()
    )
    if not onednn:
        return F.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')
    return result


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`; same names and weights."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is its weight and bias and nothing else: no subclass, and nobody waits for its call by a hook."""
    return type(layer) in (nn.Linear, Linear) and not is_hooked(layer)


def add_linear(
    total: Tensor, x: Tensor, layer: nn.Linear, scaled: tuple[Tensor, Tensor] | None = None, *, factor: float = 1.0
) -> Tensor:
    """total + factor * layer(x) + scaled[0] * scaled[1]; by one kernel where there is one.

    Args:
        total: (..., channels out), contiguous for the kernel to be taken; its dtype is the result's.
        x: (..., channels in), of as many dimensions, 3 or 4.
        layer: from x's channels to total's.
        scaled: features of total's shape, and the factor of each channel, (1 or B, 1, ..., channels out).
        factor: of the layer's result, in training.

    Returns:
        A tensor like total.
    """
    if torch.is_grad_enabled() or factor != 1.0 or not is_plain_linear(layer):
        return _add_linear_with_gradients(total, x, layer, scaled, factor)
    return _add_linear(total, x, layer, layer.weight, layer.bias, scaled)


def _add_linear(
    total: Tensor,
    x: Tensor,
    layer: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor | None,
    scaled: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """`add_linear` without gradients; layer: computes it where no kernel does."""
    if products.takes(total, x, weight, bias, *(scaled or ())):
        image, before = (tensor if tensor.ndim == 4 else tensor[None] for tensor in (x, total))
        channels = before.shape[3]
        branch = scaled and (scaled[0].view(before.shape), scaled[1].reshape(-1, channels).expand(len(before), -1))
        return products.product(image, Layer(weight, bias), add=before, scaled=branch).view(total.shape)
    kernels = kernels_for(total, weight, bias)
    if kernels is not None and x.dtype == weight.dtype:
        fused: Tensor = kernels.linear(x, Layer(weight, bias), add=total, scaled=scaled)[0]
        return fused
    result = total + layer(x.to(weight.dtype))
    return result if scaled is None else result.addcmul_(*(part.to(result.dtype) for part in scaled))


def _add_linear_with_gradients(
    total: Tensor, x: Tensor, layer: nn.Linear, scaled: tuple[Tensor, Tensor] | None, factor: float
) -> Tensor:
    """`add_linear` in training: on the CPU its sums are made at once, too, and their gradients from few passes."""
    if total.device.type == 'cpu' and is_plain_linear(layer) and not is_traced():
        dtype = layer.weight.dtype
        if torch.is_autocast_enabled('cpu') and dtype != torch.float64:
            dtype = torch.get_autocast_dtype('cpu')
        parts = [part.to(dtype) for part in (x, *(scaled or ()))]
        with torch.autocast('cpu', enabled=False):
            together: Tensor = _AddLinear.apply(total, parts[0], *weights_of(layer, factor), *parts[1:])
        return together
    casts = x.is_cuda and torch.is_autocast_enabled('cuda')  # the layer's input by itself
    y = layer(x if casts else like_weights(x, layer))
    y = y if factor == 1.0 else y * factor
    return total + (y if scaled is None else torch.addcmul(y, *(part.to(y.dtype) for part in scaled)))


def weights_of(layer: nn.Linear, factor: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias, or those by which its result comes out multiplied."""
    if factor == 1.0:
        return layer.weight, layer.bias
    return layer.weight * factor, None if layer.bias is None else layer.bias * factor


class _AddLinear(torch.autograd.Function):
    """total + x weight^T + bias + features * factor, all but total in x's type once weights are cast to it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *scaled: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, *scaled)
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        branch = (scaled[0], scaled[1]) if scaled else None
        return _add_linear(total, x, functools.partial(F.linear, weight=weight, bias=bias), weight, bias, branch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *scaled = ctx.saved_tensors
        half, wanted = weight.to(x.dtype), ctx.needs_input_grad
        with torch.autocast('cpu', enabled=False):
            if not torch.is_grad_enabled() and all(wanted[1:3]) and tile_products.takes(x, half, *scaled):
                found = tile_gradients.linear_gradient(x, grad, Layer(half), scaled=tuple(scaled) or None)
                of_bias = None if bias is None else found.bias.to(bias.dtype)
                if found.features is None or found.factor is None:
                    return grad, found.x, found.weight.to(weight.dtype), of_bias
                return grad, found.x, found.weight.to(weight.dtype), of_bias, found.features, found.factor.to(x.dtype)
            near = grad.to(x.dtype)  # what follows has gradients itself, should they be asked for
            rows = near.reshape(-1, near.shape[-1])
            of_x = near @ half if wanted[1] else None
            of_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if wanted[2] else None
            of_bias = rows.sum(0).to(bias.dtype) if bias is not None and wanted[3] else None
            if not scaled:
                return grad, of_x, of_weight, of_bias
            features, factor = scaled
            of_features = near * factor if wanted[4] else None
            of_factor = (near * features).sum_to_size(factor.shape) if wanted[5] else None
            return grad, of_x, of_weight, of_bias, of_features, of_factor


def normed_linear(x: Tensor, norm: nn.Module, layer: nn.Linear | Layer) -> tuple[Tensor, Tensor]:
    """layer(norm(x)) and norm(x), in inference by one kernel where there is one.

    Args:
        x: (..., C).
        norm: over the channels.
        layer: from x's channels to any number; or a part of one.

    Returns:
        (..., channels out), and a tensor like x, both in the type of the layer's weights.
    """
    kernels, first = kernels_for(x, layer.weight, layer.bias), Norm.of(norm)
    plain = isinstance(layer, Layer) or is_plain_linear(layer)
    if kernels is not None and first is not None and plain:
        fused: tuple[Tensor, Tensor] = kernels.linear(x, Layer(layer.weight, layer.bias), norm=first)
        return fused
    y = like_weights(norm(x), layer)
    return (layer(y) if isinstance(layer, nn.Module) else linear(y, layer.weight, layer.bias)), y
