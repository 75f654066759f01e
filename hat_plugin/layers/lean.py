"""What is cheap to compute again is not kept for the backward pass.

A linear layer keeps its input for its weight's gradient. Where that is what a normalisation or a GELU made, whose own
input is kept as well, it is the same twice: beside attention most of what training a transformer holds. Here the layers
that read such a result keep what it was made from.

Under torch.compile the compiler decides that by itself, and layers run as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hat_plugin.kernels import tile_gradients, tile_products
from hat_plugin.kernels.fused_products import kernels_for
from hat_plugin.kernels.operands import Layer, Norm, is_traced
from hat_plugin.layers.convolution import (
    convolution_gradients,
    convolve,
    gradients_by_tiles,
    takes_gradients,
)
from hat_plugin.layers.linear import linear, normed_linear
from hat_plugin.layers.recipe import Made, Reader, Recipe
from hat_plugin.layers.strips import like_weights


def through(x: Tensor, step: nn.Module, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each of the layers makes of step(x); for their gradients x is kept, and step(x) is made again.

    Args:
        x: (B, H, W, C), or (..., C) where no layer is a convolution.
        step: a normalisation over the channels, or an activation.
        layers: linear layers, convolutions, or `nn.Identity` for step(x) itself; their weights are of one dtype.

    Returns:
        A tensor for each layer, channels last, in the weights' dtype or autocast's; step(x) in its own.
    """
    made, readers = Made.of(step), [Reader.of(layer) for layer in layers]
    plain = made is None or None in readers or not torch.is_grad_enabled() or is_traced()
    weights = [tensor for reader in readers if reader for tensor in (reader.weight, reader.bias)]
    if plain or made is None or not any(isinstance(tensor, Tensor) for tensor in weights):
        return _as_they_are(x, step, layers)
    dtype = next(weight.dtype for weight in weights if weight is not None)
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    geometries = tuple(reader.geometry for reader in readers if reader)
    recipe = Recipe(made.function, len(made.parameters), geometries, dtype)
    with torch.autocast(kind, enabled=False):
        results: tuple[Tensor, ...] = _Through.apply(recipe, x, *made.parameters, *weights)
    return results


def _as_they_are(x: Tensor, step: nn.Module, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """`through` by calls of the modules."""
    results: list[Tensor] = []
    if isinstance(layers[0], nn.Linear) and not any(isinstance(layer, nn.Identity) for layer in layers):
        first, y = normed_linear(x, step, layers[0])
        results.append(first)
    else:
        y = step(x)
    for layer in layers[len(results) :]:
        if isinstance(layer, nn.Identity):
            results.append(y)
        elif isinstance(layer, nn.Conv2d):
            results.append(layer(like_weights(y, layer).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        else:
            results.append(layer(like_weights(y, layer)))
    return tuple(results)


class _Through(torch.autograd.Function):
    """See `through`."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.recipe = recipe
        ctx.save_for_backward(x, *tensors)
        readers = recipe.readers(tensors)
        results: list[Tensor] = []
        fused = _fused(recipe, x, tensors, readers)
        if fused is not None:
            results, y = [fused[0]], fused[1]
        else:
            y = recipe.step(x, *tensors[: recipe.parameters])
        image = y.to(recipe.dtype)
        for weight, bias, geometry in readers[len(results) :]:
            if weight is None:
                results.append(y)
            elif geometry is None:
                results.append(linear(image, weight, bias))
            else:
                results.append(convolve(image, weight, bias, geometry))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        recipe: Recipe = ctx.recipe
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        with torch.autocast(inputs[0].device.type, enabled=False):
            if torch.is_grad_enabled():  # a gradient of this gradient may be asked for
                wanted = [tensor for tensor, want in zip(inputs, needed, strict=True) if want]
                results = recipe.compute(inputs[0], inputs[1:])
                slopes = iter(torch.autograd.grad(results, wanted, grads, create_graph=True))
                return None, *(next(slopes) if want else None for want in needed)
            given = recipe, inputs, recipe.readers(inputs[1:]), grads, needed
            found = _fused_gradients(*given) or _gradients(*given)
        gradients: list[Tensor | None] = [None]
        for gradient, tensor, want in zip(found, inputs, needed, strict=True):
            gradients.append(gradient.to(tensor.dtype) if gradient is not None and want else None)
        return tuple(gradients)


def _gradients(
    recipe: Recipe,
    inputs: Sequence[Tensor | None],
    readers: Sequence[Reader],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """`_Through.backward` without gradients of its own, step by step."""
    first = 1 + recipe.parameters
    known = [
        tensor.detach().requires_grad_(want) if tensor is not None else None
        for tensor, want in zip(inputs[:first], needed, strict=False)
    ]
    with torch.enable_grad():
        y = recipe.step(*known)
    wanted = [any(needed[:first]), *needed[first:]]
    image = y.detach().to(recipe.dtype)
    total, of_weights = _gradients_of_readers(lambda: image, readers, grads, wanted, y.dtype)
    leaves = [tensor for tensor in known if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(y, leaves, total) if total is not None else ())
    return [*(next(found, None) if want else None for want in needed[:first]), *of_weights]


def _gradients_of_readers(
    image: Callable[[], Tensor],
    readers: Sequence[Reader],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
    dtype: torch.dtype,
    before: tuple[Tensor, Norm] | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradient of what layers read, in dtype, and those of their weights and biases, each where it is needed.

    Args:
        image: makes what they read.
        readers: the layers.
        grads: of their results.
        needed: of what they read, then of each weight and bias.
        dtype: as said.
        before: what a normalisation makes the image from, and the normalisation, where a kernel may do so by itself.
    """
    total: Tensor | None = None
    of_weights: list[Tensor | None] = []
    for number, (grad, reader) in enumerate(zip(grads, readers, strict=True)):
        at = 1 + 2 * number
        more, *of_layer = _reader_gradients(image, grad, reader, (needed[0], needed[at], needed[at + 1]), before)
        of_weights += of_layer
        if more is not None:  # a gradient that came in is not written to
            total = more.to(dtype) if total is None else total + more
    return total, of_weights


def _fused_gradients(
    recipe: Recipe,
    inputs: Sequence[Tensor | None],
    readers: Sequence[Reader],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None] | None:
    """`_gradients` where those of a normalisation and of the first layer come from one kernel; else None."""
    x, *tensors = inputs
    norm, (first, *others) = recipe.norm(tensors), readers
    itself = any(reader.weight is None for reader in readers)
    if x is None or norm is None or itself or first.geometry is not None or not all(needed[:3]):
        return None
    assert first.weight is not None
    if not tile_products.takes(x, first.weight, first.bias, grads[0]):
        return None
    image = functools.cache(lambda: recipe.step(x, *norm[:2]).to(recipe.dtype))
    wanted, before = [True, *needed[5:]], (x, norm)
    total, of_weights = _gradients_of_readers(image, others, grads[1:], wanted, recipe.dtype, before)
    of_layer = tile_gradients.linear_gradient(x, grads[0], Layer(first.weight, first.bias), norm=norm, add=total)
    return [of_layer.x, of_layer.norm_weight, of_layer.norm_bias, of_layer.weight, of_layer.bias, *of_weights]


def _fused(
    recipe: Recipe, x: Tensor, tensors: Sequence[Tensor | None], readers: Sequence[Reader]
) -> tuple[Tensor, Tensor] | None:
    """The first layer's result, and the step's, by one kernel where there is one."""
    weight, bias, geometry = readers[0]
    itself, norm = any(reader.weight is None for reader in readers), recipe.norm(tensors)
    if itself or norm is None or weight is None or geometry is not None:
        return None
    kernels = kernels_for(x, weight, bias)
    if kernels is None:
        return None
    fused: tuple[Tensor, Tensor] = kernels.linear(x, Layer(weight, bias), norm=norm)
    return fused


def _reader_gradients(
    image: Callable[[], Tensor],
    grad: Tensor,
    reader: Reader,
    wanted: tuple[bool, bool, bool],
    before: tuple[Tensor, Norm] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of what a layer read, of its weight and its bias, each where it is wanted."""
    weight, _, geometry = reader
    if weight is None:
        return grad, None, None
    if geometry is not None:
        if before is not None and takes_gradients(before[0], weight, grad, geometry):
            return gradients_by_tiles(before[0], weight, grad, wanted, before[1])
        return convolution_gradients(image(), weight, grad, geometry, wanted)
    rows = grad.reshape(-1, grad.shape[-1])
    of_weight = rows.t() @ image().reshape(-1, weight.shape[1]) if wanted[1] else None
    return grad @ weight if wanted[0] else None, of_weight, rows.sum(0) if wanted[2] else None
