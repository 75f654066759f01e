"""Convolutions, channels last; the 3x3 ones are ours on the CPU in fp32 and by AMX, and on a GPU in inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import products, tile_gradients, tile_products
from hat_plugin.kernels.fused_products import kernels_for
from hat_plugin.kernels.operands import Layer, Norm, is_hooked

_FEWEST = 16  # channels; with fewer torch's was faster
_FEWEST_BY_AMX = 4  # from 144 to 6 and back over 64x64 pixels, with what goes round it: 1.7 ms, by torch 5.2


class Geometry(NamedTuple):
    """How a convolution goes over an image, with zeros around it; values as `torch.nn.Conv2d` holds them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Geometry | None:
        """A layer's, or None where what is around the image is not zeros."""
        if layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
            return None
        return cls(layer.stride, layer.padding, layer.dilation, layer.groups)

    def is_ours(self, weight: Tensor, fewest: int = _FEWEST) -> bool:
        """Whether it is a convolution that the kernels are for, and were measured ahead with: of so many channels."""
        plain = (weight.shape[2:], *self) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        return plain and min(weight.shape[:2]) >= fewest


def convolve(image: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution without gradients: (B, H, W, C) to (B, H', W', C')."""
    layer = Layer(weight, bias)
    if geometry.is_ours(weight) and products.takes(image, weight, bias):
        return products.product(image, layer)
    kernels = _kernels_for(image, weight, bias, geometry)
    if kernels is not None:
        result: Tensor = kernels.convolution(image, layer)
        return result
    return F.conv2d(image.permute(0, 3, 1, 2), weight, bias, *geometry).permute(0, 2, 3, 1)


def convolution_gradients(
    image: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `convolve`'s image, weight and bias, each where it is wanted.

    Args:
        image: as there.
        weight: as there.
        grad: of the result, (B, H', W', C').
        geometry: as there.
        wanted: of image, weight and bias.
    """
    if takes_gradients(image, weight, grad, geometry):
        return gradients_by_tiles(image, weight, grad, wanted)
    of_bias = grad.sum((0, 1, 2)) if wanted[2] else None
    if geometry.is_ours(weight) and not torch.is_grad_enabled() and products.takes(image, weight, grad):
        grad = grad.contiguous()
        of_image = products.input_gradient(grad, weight) if wanted[0] else None
        of_weight = products.weight_gradient(image, grad, weight) if wanted[1] else None
        return of_image, of_weight, of_bias
    if not any(wanted[:2]):
        return None, None, of_bias
    stride, padding, dilation, groups = geometry
    images = grad.permute(0, 3, 1, 2), image.permute(0, 3, 1, 2)
    by_torch = torch.ops.aten.convolution_backward(
        *images, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wanted[:2], False)
    )
    return by_torch[0].permute(0, 2, 3, 1) if wanted[0] else None, by_torch[1], of_bias


def takes_gradients(image: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> bool:
    """Whether `gradients_by_tiles` is for such operands: in bf16, image perhaps in fp32, and AMX there."""
    return geometry.is_ours(weight) and not torch.is_grad_enabled() and tile_products.takes(image, weight, grad)


def gradients_by_tiles(
    image: Tensor, weight: Tensor, grad: Tensor, wanted: tuple[bool, bool, bool], norm: Norm | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`convolution_gradients` by AMX; norm: what comes before the convolution, whose result's gradient is the first."""
    of_image = tile_products.input_gradient(grad, weight) if wanted[0] else None
    if not any(wanted[1:]):
        return of_image, None, None
    return of_image, *tile_gradients.convolution_gradient(image, grad, norm=norm)


def _kernels_for(image: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Any | None:
    """What of `fused_products` is to compute a convolution; None: torch, or `products`."""
    if geometry is None or not geometry.is_ours(weight, _FEWEST_BY_AMX):
        return None
    kernels = kernels_for(image, weight, bias)
    half = image.dtype == weight.dtype != torch.float32  # on a GPU: cuDNN has TF32
    return kernels if kernels is tile_products or (half and geometry.is_ours(weight)) else None


class _Convolution(torch.autograd.Function):
    """`convolve` with its gradients, once weight and bias are cast to the image's type."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(image, weight, bias)
        return convolve(image, weight.to(image.dtype), None if bias is None else bias.to(image.dtype), geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, bias = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            cast = weight.to(image.dtype)
            found = convolution_gradients(image, cast, grad, ctx.geometry, ctx.needs_input_grad[:3])
        of_image, of_weight, of_bias = found
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return of_image, of_weight, None if of_bias is None or bias is None else of_bias.to(bias.dtype), None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`; a 3x3 convolution that keeps the size, channels last, is computed with fewer products.

    Names and weights are torch's, results and gradients but for rounding. HAT's over 4,096 pixels took 0.5 to 0.6 of
    the time of torch's forward, and 0.3 to 0.5 backward (AMD EPYC with AVX2, fp32).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        geometry = Geometry.of(self)
        if geometry is None or input.ndim != 4 or input.stride(1) != 1:  # not channels last
            return super().forward(input)
        image, weights = input.permute(0, 2, 3, 1), (self.weight, self.bias)
        kernels = _kernels_for(image, *weights, geometry)
        if kernels is not None and image.dtype == self.weight.dtype:
            fused: Tensor = kernels.convolution(image, Layer(*weights))
            return fused.permute(0, 3, 1, 2)
        half = geometry.is_ours(self.weight) and tile_products.takes_cast(image, *weights)
        if not half and not (geometry.is_ours(self.weight) and products.takes(image, *weights)):
            return super().forward(input)
        if not half and not torch.is_grad_enabled():
            return convolve(image, *weights, geometry).permute(0, 3, 1, 2)
        with torch.autocast('cpu', enabled=False):
            image = image.bfloat16() if half else image
            result: Tensor = _Convolution.apply(image, *weights, geometry)
        return result.permute(0, 3, 1, 2)

    def over_image(
        self,
        image: Tensor,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        add: Tensor | None = None,
        dtype: torch.dtype | None = None,
        means: Tensor | None = None,
    ) -> Tensor:
        """The convolution of norm(image) without gradients, by one kernel; then a GELU, then + add.

        Args:
            image: (B, H, W, C).
            norm: over the channels, where `takes_image` takes one; None: nothing is done before.
            gelu: whether it follows.
            add: (B, H, W, C').
            dtype: of the result, to be given with a norm alone; None: that of `add`, else of the weights.
            means: takes those of the result over each image, (B, C'), fp32, where `takes_image` takes a norm.

        Returns:
            (B, H, W, C').
        """
        layer = Layer(self.weight, self.bias, gelu)
        kernels = _kernels_for(image, self.weight, self.bias, Geometry.of(self))
        assert kernels is not None, 'takes_image says so'
        if kernels is tile_products:
            return tile_products.convolution(image, layer, norm=norm, add=add, dtype=dtype, means=means)
        assert norm is None and dtype is None and means is None, 'AMX alone has them'
        result: Tensor = kernels.convolution(image, layer, add=add)
        return result

    def takes_image(self, image: Tensor, norm: bool = False) -> bool:
        """Whether `over_image` is the one to take; norm: with a normalisation before it."""
        if type(self) is not Conv2d or is_hooked(self):
            return False
        kernels = _kernels_for(image, self.weight, self.bias, Geometry.of(self))
        return kernels is not None and (kernels is tile_products or not norm)
