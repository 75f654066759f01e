"""Linear layers and 3x3 convolutions on the CPU in fp32 by a kernel of our own, and the gradients of both.

What it is for: a chain of normalisation, linear layers, GELU and residuals that never leaves the cache, and
convolutions by minimal filtering (Winograd's), which takes 16 products in the place of 36. A linear layer alone is as
fast by oneDNN. Where the library was not built, and under torch.compile, torch computes; `takes` says which.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels.library import ConvolutionGradientArguments, ProductArguments, load, require, three
from hat_plugin.kernels.operands import Layer, Norm, check_fit, ordinary, turned
from hat_plugin.kernels.triton_launch import require_triton

CHOICES = ('auto', 'cpp', 'triton', 'torch')


def _named(name: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"products '{name}' are unknown: set HAT_PRODUCTS to one of {', '.join(CHOICES)}")
    if name == 'triton':
        require_triton()
    return name


_choice = _named(os.environ.get('HAT_PRODUCTS', 'auto'))


@contextlib.contextmanager
def products_by(name: str) -> Iterator[None]:
    """Let `takes` choose as if HAT_PRODUCTS, which is read at import, were this: ``with products_by('torch'): net(x)``.

    Args:
        name: 'auto', 'cpp', 'triton' or 'torch'.

    Raises:
        ValueError: it is none of them; the choice stays.
        TritonError: 'triton' is not installed; the choice stays.
    """
    global _choice
    before, _choice = _choice, _named(name)
    try:
        yield
    finally:
        _choice = before


def choice() -> str:
    """What HAT_PRODUCTS or `products_by` say."""
    return _choice


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernel is the one to take for such operands: plain fp32 tensors on the CPU, and the library there.

    HAT_PRODUCTS=cpp takes it wherever it was built, HAT_PRODUCTS=torch never. Else it runs where it was measured, on
    processors with AVX2 or AVX-512: over 4,096 pixels it took 0.5 to 0.7 of torch's time for a normalised MLP with its
    residual, and 0.5 to 0.6 for a convolution, forward as backward.
    """
    if _choice in ('torch', 'triton') or not ordinary('cpu', *tensors):
        return False
    if any(x is not None and x.dtype != torch.float32 for x in tensors):
        return False
    return _is_ahead()


def would_take(*tensors: Tensor | None) -> bool:
    """Whether `takes` would say so, were these fake tensors real ones: for an estimate of memory."""
    there = [x for x in tensors if x is not None]
    fake = all(isinstance(x, FakeTensor) and x.device.type == 'cpu' and x.dtype == torch.float32 for x in there)
    if not fake or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
        return False
    return _choice not in ('torch', 'triton') and _is_ahead()


def _is_ahead() -> bool:
    library = load()
    return library is not None and (_choice == 'cpp' or library.hat_vector_bits() >= 256)


def product(
    x: Tensor,
    *layers: Layer,
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """One or two layers over the pixels of an image, without gradients: layers(norm(x)) + add + scaled[0] * scaled[1].

    Args:
        x: (B, H, W, C), fp32.
        layers: a convolution without a GELU and nothing more, or one or two linear ones; what lies between those is
            never written to memory.
        norm: comes first.
        add: is added at the end, (B, H, W, outputs).
        scaled: is added at the end: an image like `add`, and the factor of each channel, (B, outputs).
        library: the kernels; None for those of this machine.

    Returns:
        (B, H, W, outputs), contiguous.

    Raises:
        ValueError: shapes or dtypes do not fit each other.
        RuntimeError: memory ran out.
    """
    _check(x, layers, norm, add, scaled)
    out = x.new_empty((*x.shape[:3], layers[-1].weight.shape[0]))
    kept: list[Tensor] = [out]

    def address(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        kept.append(tensor.contiguous())
        return kept[-1].data_ptr()

    x = x if x.stride(3) == 1 else x.contiguous()
    calls = []
    for number, (weight, bias, gelu) in enumerate(layers):
        weight = _strided(weight)
        kept.append(weight)
        call = _sizes(ProductArguments, x, weight)
        call.taps = math.prod(weight.shape[2:])
        call.x, call.weight, call.weight_stride = x.data_ptr(), weight.data_ptr(), three(*_strides(weight))
        call.bias, call.gelu = address(bias), gelu
        if norm is not None and not number:
            call.norm_weight, call.norm_bias, call.eps = address(norm.weight), address(norm.bias), norm.eps
        calls.append(call)
    calls[-1].out, calls[-1].add = out.data_ptr(), address(add)
    if scaled is not None:
        calls[-1].scaled, calls[-1].factor = map(address, scaled)
    following = ctypes.byref(calls[1]) if len(calls) > 1 else None
    succeed((library or require()).hat_product(ctypes.byref(calls[0]), following), x)
    return out


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a layer's input: (B, H, W, outputs) and the layer's weight to (B, H, W, inputs)."""
    return product(grad, Layer(turned(weight)))


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, library: ctypes.CDLL | None = None) -> Tensor:
    """The gradient of a 3x3 convolution's weight, like it in shape and memory; the same for any number of threads.

    Args:
        x: the convolution's input, (B, H, W, inputs).
        grad: the gradient of its output, (B, H, W, outputs).
        weight: the convolution's, for its shape and strides alone.
        library: as in `product`.
    """
    _check(x, (Layer(weight),), None, None, None)
    if weight.ndim != 4:
        raise ValueError(f'weight {tuple(weight.shape)}: give a 3x3 kernel')
    if grad.shape != (*x.shape[:3], weight.shape[0]):
        raise ValueError(
            f'a gradient of {tuple(grad.shape)} is not that of {tuple(weight.shape)} over {tuple(x.shape)}'
        )
    if grad.dtype != torch.float32 or grad.device.type != 'cpu':
        raise ValueError(f'grad is {grad.dtype} on {grad.device}: this kernel is for fp32 on the CPU')
    x = x if x.stride(3) == 1 else x.contiguous()
    grad, out = grad.contiguous(), torch.empty_like(_strided(weight))
    call = _sizes(ConvolutionGradientArguments, x, weight)
    call.x, call.grad, call.out = x.data_ptr(), grad.data_ptr(), out.data_ptr()
    call.out_stride = three(*_strides(out))
    succeed((library or require()).hat_convolution_gradient(ctypes.byref(call)), x)
    return out


def _strided(weight: Tensor) -> Tensor:
    """The weight, or a copy of it, such that a tap is at one distance from the next."""
    return weight if weight.ndim == 2 or weight.stride(2) == 3 * weight.stride(3) else weight.contiguous()


def _strides(weight: Tensor) -> tuple[int, int, int]:
    return weight.stride(0), weight.stride(1), weight.stride(3) if weight.ndim == 4 else 0


def _sizes(kind: Any, x: Tensor, weight: Tensor) -> Any:
    """The fields that both structs have."""
    return kind(
        x_stride=three(*x.stride()[:3]),
        **dict(zip(('batch', 'height', 'width'), x.shape[:3], strict=True)),
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        threads=torch.get_num_threads(),
    )


def succeed(failed: int, x: Tensor) -> None:
    """Raise a RuntimeError where a kernel over x says that it failed."""
    if failed:
        raise RuntimeError(f'no memory left for a layer over {tuple(x.shape)}: give smaller tiles')


def _check(
    x: Tensor,
    layers: tuple[Layer, ...],
    norm: Norm | None,
    add: Tensor | None,
    scaled: tuple[Tensor, Tensor] | None,
) -> None:
    """Raise a ValueError unless the operands of `product` fit each other: beyond is no safety net."""
    if x.ndim != 4:
        raise ValueError(f'x {tuple(x.shape)} and {len(layers)} layers: give (B, H, W, C) and one layer or two')
    for name, tensor in check_fit(x, layers, norm, add, scaled).items():
        if tensor.dtype != torch.float32 or tensor.device.type != 'cpu':
            raise ValueError(f'{name} is {tensor.dtype} on {tensor.device}: this kernel is for fp32 on the CPU')
