"""Convolutions, channels last; the 3x3 ones are ours on the CPU in fp32, and on a GPU in inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels import products, triton_products
from hat_plugin.kernels.operands import Layer

_FEWEST = 16  # channels; with fewer torch's was faster


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

    def is_ours(self, weight: Tensor) -> bool:
        """Whether it is a convolution that the kernels are for, and were measured ahead with."""
        plain = (weight.shape[2:], *self) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        return plain and min(weight.shape[:2]) >= _FEWEST


def convolve(image: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution without gradients: (B, H, W, C) to (B, H', W', C')."""
    if geometry.is_ours(weight):
        layer = Layer(weight, bias)
        if products.takes(image, weight, bias):
            return products.product(image, layer)
        if takes_triton(image, weight, bias):
            return triton_products.convolution(image, layer)
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
    if geometry.is_ours(weight) and not torch.is_grad_enabled() and products.takes(image, weight, grad):
        grad = grad.contiguous()
        of_image = products.input_gradient(grad, weight) if wanted[0] else None
        of_weight = products.weight_gradient(image, grad, weight) if wanted[1] else None
    else:
        stride, padding, dilation, groups = geometry
        images = grad.permute(0, 3, 1, 2), image.permute(0, 3, 1, 2)
        of_image, of_weight, _ = torch.ops.aten.convolution_backward(
            *images, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wanted[:2], False)
        )
        of_image = None if of_image is None else of_image.permute(0, 2, 3, 1)
    return of_image, of_weight, grad.sum((0, 1, 2)) if wanted[2] else None


def takes_triton(image: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a GPU's kernel is the one to take for a convolution that `Geometry.is_ours`."""
    inference = not torch.is_grad_enabled() and image.dtype == weight.dtype != torch.float32  # cuDNN has TF32
    return inference and triton_products.takes(image, weight, bias)


class _Convolution(torch.autograd.Function):
    """`convolve` with its gradients."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(image, weight)
        return convolve(image, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        return *convolution_gradients(image, weight, grad, ctx.geometry, ctx.needs_input_grad[:3]), None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`; a 3x3 convolution that keeps the size, channels last, is computed with fewer products.

    Names and weights are torch's, results and gradients but for rounding. HAT's over 4,096 pixels took 0.5 to 0.6 of
    the time of torch's forward, and 0.3 to 0.5 backward (AMD EPYC with AVX2, fp32).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        geometry = Geometry.of(self)
        channels_last = input.ndim == 4 and input.stride(1) == 1
        if not channels_last or geometry is None or not geometry.is_ours(self.weight):
            return super().forward(input)
        image, weights = input.permute(0, 2, 3, 1), (self.weight, self.bias)
        if takes_triton(image, *weights):
            return self.over_image(image).permute(0, 3, 1, 2)
        if not products.takes(image, *weights):
            return super().forward(input)
        if not torch.is_grad_enabled():
            return convolve(image, *weights, geometry).permute(0, 3, 1, 2)
        result: Tensor = _Convolution.apply(image, *weights, geometry)
        return result.permute(0, 3, 1, 2)

    def over_image(self, image: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """The convolution on a GPU without gradients, (B, H, W, C) to (B, H, W, C'); then a GELU, then + add."""
        return triton_products.convolution(image, Layer(self.weight, self.bias, gelu), add=add)

    def takes_image(self, image: Tensor) -> bool:
        """Whether `over_image` is the one to take."""
        geometry = Geometry.of(self)
        ours = geometry is not None and geometry.is_ours(self.weight)
        return ours and takes_triton(image, self.weight, self.bias)
