"""Layers on the CPU in bf16 by Intel's matrix units (AMX), without gradients, with all that goes round them.

What lies between a normalisation, two layers, a GELU and a residual never leaves the cache; a 3x3 convolution is a
layer that sees neighbours. The calls are those of `triton_products`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hat_plugin.kernels.library import TileProductArguments, load, require
from hat_plugin.kernels.operands import Layer, Norm, check_fused, is_traced, ordinary
from hat_plugin.kernels.products import choice

_AMX = 2  # of `library.BF16_WAYS`


def takes(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether this kernel is the one to take: plain tensors on the CPU, weights in bf16, x too or in fp32; and AMX.

    HAT_PRODUCTS=torch never takes it.
    """
    if any(weight is not None and weight.dtype != torch.bfloat16 for weight in weights):
        return False
    return ordinary('cpu', x, *weights) and _is_chosen(x)


def takes_cast(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether it is once the weights, fp32 or bf16, are cast as autocast would."""
    if is_traced() or not _are_cast(weights):
        return False
    with torch.autocast('cpu', enabled=False):
        return ordinary('cpu', x, *weights) and _is_chosen(x)


def would_take_cast(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether `takes_cast` would say so, were these fake tensors real ones: for an estimate of memory."""
    fake = all(tensor is None or isinstance(tensor, FakeTensor) for tensor in (x, *weights))
    return fake and not is_traced() and _are_cast(weights) and _is_chosen(x)


def _are_cast(weights: tuple[Tensor | None, ...]) -> bool:
    """Whether weights are in bf16, or autocast makes them so."""
    casts = torch.is_autocast_enabled('cpu')
    if casts and torch.get_autocast_dtype('cpu') != torch.bfloat16:
        return False
    kinds = (torch.bfloat16, torch.float32) if casts else (torch.bfloat16,)
    return all(weight is None or weight.dtype in kinds for weight in weights)


def _is_chosen(x: Tensor) -> bool:
    if choice() not in ('auto', 'cpp') or x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != 'cpu':
        return False
    library = load()
    return library is not None and library.hat_bf16_way(-1) == _AMX


def linear(
    x: Tensor,
    layer: Layer,
    *,
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor]:
    """layer(norm(x)) + add + scaled[0] * scaled[1]; arguments and result as in `triton_products.linear`.

    Args:
        library: the kernels; None for those of this machine.

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    check_fused(x, (layer,), norm, add, scaled)
    outputs = layer.weight.shape[0]
    out = x.new_empty((*x.shape[:-1], outputs), dtype=torch.bfloat16 if add is None else add.dtype)
    normed = x if norm is None else torch.empty_like(x, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    kept: list[Tensor] = [out, normed]
    call = arguments(x.contiguous(), layer, norm, kept)
    call.out, call.half_out = out.data_ptr(), out.dtype == torch.bfloat16
    call.normed = None if norm is None else normed.data_ptr()
    call.add = address(add, kept)
    add_scaled(call, scaled, kept)
    _run(library, call, None)
    return out, normed


def feed_forward(x: Tensor, norm: Norm, up: Layer, down: Layer, *, library: ctypes.CDLL | None = None) -> Tensor:
    """x + down(GELU(up(norm(x)))); arguments and result as in `triton_products.feed_forward`, errors as in `linear`.

    Args:
        library: as in `linear`.
    """
    check_fused(x, (up, down), norm, x)
    x = x.contiguous()
    out = torch.empty_like(x)
    kept: list[Tensor] = [out, x]
    first = arguments(x, Layer(up.weight, up.bias, gelu=True), norm, kept)
    second = arguments(x, down, None, kept)
    second.out, second.half_out = out.data_ptr(), x.dtype == torch.bfloat16
    second.add = x.data_ptr()
    _run(library, first, second)
    return out


def convolution(
    x: Tensor,
    layer: Layer,
    *,
    norm: Norm | None = None,
    add: Tensor | None = None,
    dtype: torch.dtype | None = None,
    means: Tensor | None = None,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """A 3x3 convolution of norm(x), zeros around that, which keeps the size; a GELU if the layer has one, and + add.

    Args:
        x: (B, H, W, C), fp32 or bf16.
        layer: weight (outputs, C, 3, 3), bf16; channels last, else it is copied.
        norm: comes first, pixel by pixel.
        add: is added at the end, (B, H, W, outputs), in fp32 or bf16.
        dtype: of the result, fp32 or bf16, and without need where there is `add`, whose type it then takes.
        means: takes those of the result over each image, (B, outputs), fp32, contiguous.

    Returns:
        (B, H, W, outputs), contiguous, in the type of `add`, else as asked for, else bf16.

    Raises:
        ValueError: the operands do not fit each other.
        RuntimeError: memory ran out, or there is no AMX.
    """
    if x.ndim != 4 or layer.weight.shape[2:] != (3, 3):
        raise ValueError(f'x {tuple(x.shape)}, weight {tuple(layer.weight.shape)}: give (B, H, W, C) and a 3x3 kernel')
    check_fused(x, (layer._replace(weight=layer.weight[:, :, 0, 0]),), norm, add)
    return _convolution(x, layer, norm, add, dtype, means, library)


def _convolution(
    x: Tensor,
    layer: Layer,
    norm: Norm | None = None,
    add: Tensor | None = None,
    dtype: torch.dtype | None = None,
    means: Tensor | None = None,
    library: ctypes.CDLL | None = None,
    *,
    turned: bool = False,
) -> Tensor:
    """`convolution`; turned: that from the gradient of the layer's result to that of its input."""
    weight = layer.weight.permute(0, 2, 3, 1).contiguous()
    outputs = weight.shape[3 if turned else 0]
    out = x.new_empty((*x.shape[:-1], outputs), dtype=add.dtype if add is not None else dtype or torch.bfloat16)
    kept: list[Tensor] = [out]
    call = arguments(x.contiguous(), layer._replace(weight=weight.view(weight.shape[0], -1)), norm, kept)
    call.outputs, call.turned = outputs, turned
    call.inputs, call.taps = x.shape[3], 9
    call.image, call.width = x.shape[1] * x.shape[2], x.shape[2]
    call.out, call.half_out, call.add = out.data_ptr(), out.dtype == torch.bfloat16, address(add, kept)
    if means is not None:
        if (means.shape, means.dtype) != ((x.shape[0], outputs), torch.float32) or not means.is_contiguous():
            raise ValueError(
                f'means {tuple(means.shape)}, {means.dtype}: give {(x.shape[0], outputs)}, fp32, contiguous'
            )
        call.means = means.data_ptr()
    _run(library, call, None)
    return out


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a 3x3 convolution's input, bf16: (B, H, W, outputs) and the weight to (B, H, W, inputs)."""
    outputs = weight.shape[0]
    if weight.shape[2:] != (3, 3) or grad.ndim != 4 or grad.shape[3] != outputs or grad.dtype != weight.dtype:
        raise ValueError(f'a gradient of {tuple(grad.shape)}, {grad.dtype}, is not that of {tuple(weight.shape)}')
    check_fused(grad, (Layer(weight[:, :, 0, 0].t()),))
    return _convolution(grad, Layer(weight), turned=True)


def arguments(
    x: Tensor, layer: Layer, norm: Norm | None, kept: list[Tensor], *, turned: bool = False
) -> TileProductArguments:
    """What is known of a layer over x, contiguous; the second of two has as many pixels.

    Args:
        x: pixels.
        layer: a linear one.
        norm: comes before it.
        kept: takes what must live till the call.
        turned: x is the gradient of the layer's result, and the product makes that of its input.

    Raises:
        ValueError: weights are not in bf16.
    """
    if layer.weight.dtype != torch.bfloat16:
        raise ValueError(f'weights are {layer.weight.dtype}: give bf16')
    outputs, inputs = reversed(layer.weight.shape) if turned else layer.weight.shape
    pixels = x.numel() // x.shape[-1]
    call = TileProductArguments(
        turned=turned,
        pixels=pixels,
        image=pixels,
        inputs=inputs,
        outputs=outputs,
        taps=1,
        gelu=layer.gelu,
        half_x=x.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    call.x, call.weight = address(x, kept), address(layer.weight, kept)
    call.bias = address(None if layer.bias is None else layer.bias.float(), kept)
    if norm is not None:
        call.norm_weight, call.norm_bias = address(norm.weight.float(), kept), address(norm.bias.float(), kept)
        call.eps = norm.eps
    return call


def add_scaled(call: TileProductArguments, scaled: tuple[Tensor, Tensor] | None, kept: list[Tensor]) -> None:
    """Let a layer have features added to its result, times the factor of each channel; None: nothing."""
    if scaled is not None:
        call.image = call.pixels * call.outputs // scaled[1].numel()
        call.scaled = address(scaled[0].to(torch.bfloat16), kept)
        call.factor = address(scaled[1].float(), kept)


def address(tensor: Tensor | None, kept: list[Tensor]) -> int | None:
    """Where a tensor begins, made contiguous and kept alive; None for none."""
    if tensor is None:
        return None
    kept.append(tensor.contiguous())
    return kept[-1].data_ptr()


def check(failed: int, what: str, pixels: int) -> None:
    """Raise a RuntimeError if a function of the library says that it did not do what it was called for."""
    if failed == 1:
        raise RuntimeError(f'no memory left for {what} over {pixels} pixels: give smaller tiles')
    if failed:
        raise RuntimeError(f'{what} over {pixels} pixels: this machine or library has no AMX')


def _run(library: ctypes.CDLL | None, first: TileProductArguments, second: TileProductArguments | None) -> None:
    following = None if second is None else ctypes.byref(second)
    check((library or require()).hat_tile_product(ctypes.byref(first), following), 'a layer', first.pixels)
