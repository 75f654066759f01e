"""Linear layers through the library that was measured fastest."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import products
from hat_plugin.kernels.fused_products import kernels_for
from hat_plugin.kernels.operands import Layer, Norm, is_traced
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


def add_linear(total: Tensor, x: Tensor, layer: nn.Linear, scaled: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """total + layer(x) + scaled[0] * scaled[1], in inference by one kernel where there is one.

    Args:
        total: (..., channels out), contiguous for the kernel to be taken; its dtype is the result's.
        x: (..., channels in), of as many dimensions, 3 or 4.
        layer: from x's channels to total's.
        scaled: features of total's shape, and the factor of each channel, (1 or B, 1, ..., channels out).

    Returns:
        A tensor like total.
    """
    operands = (total, x, layer.weight, layer.bias, *(scaled or ()))
    if not torch.is_grad_enabled() and products.takes(*operands):
        image, before = (tensor if tensor.ndim == 4 else tensor[None] for tensor in (x, total))
        channels = before.shape[3]
        branch = scaled and (scaled[0].view(before.shape), scaled[1].reshape(-1, channels))
        after = Layer(layer.weight, layer.bias)
        return products.product(image, after, add=before, scaled=branch).view(total.shape)
    kernels = kernels_for(total, layer.weight, layer.bias)
    if kernels is not None and x.dtype == layer.weight.dtype:
        fused: Tensor = kernels.linear(x, Layer(layer.weight, layer.bias), add=total, scaled=scaled)[0]
        return fused
    result = total + layer(like_weights(x, layer))
    if scaled is None:
        return result
    features, factor = (part.to(result.dtype) for part in scaled)
    return torch.addcmul(result, features, factor) if torch.is_grad_enabled() else result.addcmul_(features, factor)


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
    if kernels is not None and first is not None:
        fused: tuple[Tensor, Tensor] = kernels.linear(x, Layer(layer.weight, layer.bias), norm=first)
        return fused
    y = like_weights(norm(x), layer)
    return (layer(y) if isinstance(layer, nn.Module) else linear(y, layer.weight, layer.bias)), y
