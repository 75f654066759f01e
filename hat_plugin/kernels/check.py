"""Compare a compiled library with plain torch: ``python -m hat_plugin.kernels.check FILE``. `build` runs it."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hat_plugin.kernels import products, tile_blocks, tile_gradients, tile_products
from hat_plugin.kernels.feed_forward import feed_forward_gradient, plain_feed_forward
from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.library import BF16_WAYS, open_library
from hat_plugin.kernels.native import run_image, run_image_gradient, run_windows
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.tile_blocks import BlockLayers
from hat_plugin.kernels.window_attention import plain_image_attention

_AMX = 2  # of BF16_WAYS


def _error(found: Tensor, expected: Tensor) -> float:
    """Their largest difference, as a part of the largest value expected, fp64."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def largest_error(library_file: Path, dtype: torch.dtype, queries: int, keys: int, width: int, threads: int) -> float:
    """Largest difference from fp64 on random numbers, as a part of the largest value."""
    library = open_library(library_file)
    random = torch.Generator().manual_seed(0)
    q, k, v, bias = (
        torch.randn(shape, generator=random).to(dtype)
        for shape in ((3, 2, queries, width), (3, 2, keys, width), (3, 2, keys, width), (2, queries, keys))
    )
    found = run_windows(library, q, k, v, bias, None, width**-0.5, threads=threads).double()
    q, k, v, bias = (x.double() for x in (q, k, v, bias))
    expected = F.scaled_dot_product_attention(q, k, v, bias[None], scale=width**-0.5)
    return _error(found, expected)


def largest_gradient_error(library_file: Path, dtype: torch.dtype, overlap: int, width: int, threads: int) -> float:
    """The same for the gradients of queries, keys and values, and of the bias."""
    library, random = open_library(library_file), torch.Generator().manual_seed(0)
    geometry = Geometry(width**-0.5, 2, 8, overlap, 0)
    qkv, grad, bias = (
        torch.randn(shape, generator=random).to(dtype)
        for shape in ((1, 16, 24, 6 * width), (1, 16, 24, 2 * width), (2, 64, overlap**2))
    )
    results = run_image(library, qkv, bias, None, geometry, threads=threads)
    found = run_image_gradient(library, grad, qkv, *results, bias, None, geometry, threads=threads)
    inputs = [x.double().requires_grad_() for x in (qkv, bias)]
    with sdpa_kernel(SDPBackend.MATH):
        out = plain_image_attention(inputs[0], inputs[1], None, geometry)
        expected = torch.autograd.grad(out, inputs, grad.double())
    pairs = zip(found, expected, strict=True)
    return max(_error(one, other) for one, other in pairs)


def largest_product_error(library: ctypes.CDLL, inputs: int, outputs: int, taps: int) -> float:
    """The same for a convolution (9 taps), its weight's gradient, and an MLP with all that goes round it (1 tap)."""
    random = torch.Generator().manual_seed(0)
    kernel = (3, 3) if taps == 9 else ()
    shapes = ((2, 5, 7, inputs), (outputs, inputs, *kernel), (outputs,), (2, 5, 7, outputs))
    x, weight, bias, grad = (torch.randn(shape, generator=random) for shape in shapes)
    wide = x.double(), weight.double(), bias.double()
    if taps == 1:
        layers = Layer(weight, bias, gelu=True), Layer(weight.t())
        norm = Norm(bias.new_ones(inputs), bias.new_zeros(inputs), 1e-5)
        found = products.product(x, *layers, norm=norm, add=x, scaled=(x, x[:, 0, 0]), library=library)
        hidden = F.gelu(F.linear(F.layer_norm(wide[0], (inputs,)), wide[1], wide[2]))
        expected = F.linear(hidden, wide[1].t()) + wide[0] + wide[0] * wide[0][:, :1, :1]
        return _error(found, expected)
    wide[1].requires_grad_()
    expected = F.conv2d(wide[0].permute(0, 3, 1, 2), wide[1], wide[2], padding=1).permute(0, 2, 3, 1)
    (slope,) = torch.autograd.grad(expected, wide[1], grad.double())
    pairs = (
        (products.product(x, Layer(weight, bias), library=library), expected),
        (products.weight_gradient(x, grad, weight, library=library), slope),
    )
    return max(_error(one, other) for one, other in pairs)


def largest_feed_forward_error(library: ctypes.CDLL, channels: int, hidden: int, *, amx: bool = False) -> float:
    """The same for the gradients of a normalised MLP with its residual, in fp32 or in bf16 by AMX."""
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 67, channels), (2, 5, 67, channels), (channels,), (channels,), (hidden, channels), (hidden,))
    x, grad, *inputs = (torch.randn(shape, generator=random) for shape in (*shapes, (channels, hidden), (channels,)))

    def parts(scale: Tensor, offset: Tensor, *weights: Tensor) -> tuple[Norm, Layer, Layer]:
        up, up_bias, down, down_bias = weights
        return Norm(scale, offset, 1e-5), Layer(up, up_bias), Layer(down, down_bias)

    if amx:
        norm, *layers = parts(*inputs)
        half = (layer._replace(weight=layer.weight.bfloat16()) for layer in layers)
        found = tile_gradients.feed_forward_gradient(x, grad, norm, *half, library=library)
    else:
        found = feed_forward_gradient(x, grad, *parts(*inputs), library=library)
    wide = [tensor.double().requires_grad_() for tensor in (x, *inputs)]
    expected = torch.autograd.grad(plain_feed_forward(wide[0], *parts(*wide[1:])), wide, grad.double())
    pairs = zip(found, expected, strict=True)
    return max(_error(one, other) for one, other in pairs)


def largest_tile_error(library: ctypes.CDLL, inputs: int, outputs: int) -> float:
    """The same for a normalised MLP in bf16 by AMX, a layer with all that is added, a convolution and its gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 5, 17, inputs), (outputs, inputs), (inputs, outputs), (1, 5, 17, outputs), (outputs, inputs, 3, 3))
    x, up, down, features, kernel = (torch.randn(shape, generator=random).bfloat16() for shape in shapes)
    norm = Norm(torch.ones(inputs), torch.zeros(inputs), 1e-5)
    layers = Layer(up, features[0, 0, 0]), Layer(down)
    found = tile_products.feed_forward(x.float(), norm, *layers, library=library)
    hidden = F.gelu(F.linear(F.layer_norm(x.double(), (inputs,)), up.double(), features[0, 0, 0].double()))
    expected = F.linear(hidden, down.double()) + x.double()
    scaled = (features, features[:, :1, :1])
    other = tile_products.linear(x, layers[0]._replace(bias=None), add=features, scaled=scaled, library=library)[0]
    sums = F.linear(x.double(), up.double()) + features.double() + features.double() * scaled[1].double()
    convolved = tile_products.convolution(x, Layer(kernel), add=features, library=library)
    taps = F.conv2d(x.double().permute(0, 3, 1, 2), kernel.double(), padding=1).permute(0, 2, 3, 1)
    slope = tile_gradients.convolution_gradient(x, features, library=library)[0]
    wide = kernel.double().requires_grad_()
    made = F.conv2d(x.double().permute(0, 3, 1, 2), wide, padding=1).permute(0, 2, 3, 1)
    (of_kernel,) = torch.autograd.grad(made, wide, features.double())
    pairs = ((found, expected), (other, sums), (convolved, taps + features.double()), (slope, of_kernel))
    return max(_error(one, two) for one, two in pairs)


def largest_linear_gradient_error(library: ctypes.CDLL, inputs: int, outputs: int) -> float:
    """The same for the gradients of a normalised layer in bf16 by AMX, with a branch that is added."""
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 5, 67, inputs), (1, 5, 67, outputs), (outputs, inputs), (1, 5, 67, outputs), (1, 1, 1, outputs))
    x, grad, weight, *scaled = (torch.randn(shape, generator=random).bfloat16() for shape in shapes)
    norm = Norm(torch.ones(inputs), torch.zeros(inputs), 1e-5)
    found = tile_gradients.linear_gradient(
        x, grad, Layer(weight), norm=norm, scaled=(scaled[0], scaled[1]), library=library
    )
    wide = [tensor.double().requires_grad_() for tensor in (x, weight, *scaled)]
    made = F.linear(F.layer_norm(wide[0], (inputs,)), wide[1]) + wide[2] * wide[3]
    expected = torch.autograd.grad(made, wide, grad.double())
    pairs = zip((found.x, found.weight, found.features, found.factor), expected, strict=True)
    return max(_error(one, other) for one, other in pairs if one is not None)


def largest_block_error(library: ctypes.CDLL, channels: int, window: int) -> float:
    """The same for a block of windows in bf16 by AMX, of two heads."""
    random = torch.Generator().manual_seed(0)
    square, pixels = (channels, channels), window**2
    shapes = ((1, 2 * window, window, channels), (3 * channels, channels), square, square, square, (2, pixels, pixels))
    x, *weights, bias = (torch.randn(shape, generator=random).bfloat16() for shape in shapes)
    weights = [weight / channels**0.5 for weight in weights]
    norm, geometry = Norm(torch.ones(channels), torch.zeros(channels), 1e-5), Geometry(0.25, 2, window, window, 0)
    queries, projection, up, down = map(Layer, weights)
    found = tile_blocks.window_block(
        x, BlockLayers(norm, queries, projection, norm, up, down), bias, geometry, library=library
    )
    qkv, after, before_gelu, last = (weight.double() for weight in weights)
    tokens = F.linear(F.layer_norm(x.double(), (channels,)), qkv)
    y = x.double() + F.linear(plain_image_attention(tokens, bias.double(), None, geometry), after)
    return _error(found, y + F.linear(F.gelu(F.linear(F.layer_norm(y, (channels,)), before_gelu)), last))


def faults(library_file: Path) -> Iterator[str]:
    """What it computes wrongly, and by how much; nothing if all is well. Every way of multiplying bf16 is tried."""
    library = open_library(library_file)
    for inputs, outputs, taps in ((30, 60, 1), (17, 5, 1), (30, 60, 9), (17, 5, 9)):
        error = largest_product_error(library, inputs, outputs, taps)
        if not error < 1e-5:
            yield f'products, {inputs} to {outputs} channels, {taps} taps: error {error}, bound 1e-5'
    for channels, hidden in ((30, 60), (17, 5)):
        error = largest_feed_forward_error(library, channels, hidden)
        if not error < 1e-5:
            yield f'gradients of an MLP, {channels} channels, {hidden} hidden: error {error}, bound 1e-5'
    own_way = library.hat_bf16_way(-1)
    for inputs, outputs in ((30, 60), (17, 5)) if library.hat_bf16_way(_AMX) == _AMX else ():
        error = largest_tile_error(library, inputs, outputs)
        if not error < 3e-2:
            yield f'products by AMX, {inputs} to {outputs} channels: error {error}, bound 3e-2'
        error = largest_block_error(library, outputs + outputs % 2, 4)
        if not error < 3e-2:
            yield f'a block by AMX, {outputs + outputs % 2} channels: error {error}, bound 3e-2'
        error = largest_linear_gradient_error(library, inputs, outputs)
        if not error < 3e-2:
            yield f'gradients of a layer by AMX, {inputs} to {outputs} channels: error {error}, bound 3e-2'
        error = largest_feed_forward_error(library, inputs, outputs, amx=True)
        if not error < 3e-2:
            yield f'gradients of an MLP by AMX, {inputs} channels, {outputs} hidden: error {error}, bound 3e-2'
    library.hat_bf16_way(own_way)
    cases = [(torch.float32, own_way, 1e-5)]
    cases += [(torch.bfloat16, way, 3e-2) for way in BF16_WAYS if library.hat_bf16_way(way) == way]
    for (dtype, way, bound), threads in itertools.product(cases, (1, 2)):
        library.hat_bf16_way(way)
        how = f'{dtype} ({BF16_WAYS[way]})' if dtype == torch.bfloat16 else dtype
        for queries, keys, width in ((64, 144, 30), (49, 49, 17), (17, 81, 40)):
            error = largest_error(library_file, dtype, queries, keys, width, threads)
            if not error < bound:
                yield f'{how}, {queries} queries, {keys} keys, width {width}: error {error}, bound {bound}'
        for overlap, width in ((8, 30), (12, 17)):
            error = largest_gradient_error(library_file, dtype, overlap, width, threads)
            if not error < bound:
                yield f'gradients, {how}, keys of {overlap}, width {width}: error {error}, bound {bound}'
    library.hat_bf16_way(own_way)


def main(argv: list[str]) -> int:
    """0 if the library computes what it should, else 1, and the first fault on standard error."""
    for fault in faults(Path(argv[0])):
        sys.stderr.write(f'{fault}\n')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
