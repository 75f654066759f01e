"""Compile what would be launched on a GPU that is not here: ``python compile_triton.py CAPABILITY DTYPE ...``.

The interpreter runs what no compiler would take; this finds it. Prints, as JSON, for each launch the kernel's name, the
bytes of shared memory and the number of loads by their width in bits.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hat_plugin.kernels import (
    triton_gradient_kernels,
    triton_kernels,
    triton_launch,
    triton_product_kernels,
    triton_products,
)
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.triton_launch import Sizes

TYPES = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.float16: '*fp16'}
OPTIONS = ('num_warps', 'num_stages')


class Recorder:
    """Stands for the module of kernels and for a kernel: compiles where the true one would launch."""

    def __init__(self, capability: int, module: Any, kernel: Any = None) -> None:
        self.capability = capability
        self.module = module
        self.kernel = kernel

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self.capability, self.module, getattr(self.module, name))

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        values = {**dict(zip(self.kernel.arg_names, arguments, strict=False)), **named}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
                signature[parameter.name] = 'constexpr'
                continue
            signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else type_of(value)
            if isinstance(value, Tensor):
                value = value.storage_offset() * value.element_size()  # its address, but for a multiple of 16
            if isinstance(value, int) and value % 16 == 0:
                attributes[(place,)] = [['tt.divisibility', 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget('cuda', self.capability, 32), options=options)
        widths = collections.Counter(
            int(count or 1) * int(bits)
            for count, bits in re.findall(r'ld\.global\S*?(?:\.v(\d))?\.b(\d+)', made.asm['ptx'])
        )
        print(json.dumps({'kernel': self.kernel.__name__, 'shared': made.metadata.shared, 'loads': widths}), flush=True)


def type_of(value: float) -> str:
    return 'fp32' if isinstance(value, float) else 'i32' if value < 2**31 else 'i64'


def launch(capability: int, dtype: torch.dtype, heads: int, width: int, sizes: Sizes) -> None:
    """Forward and backward of an image of 64x64, without data."""
    triton_launch._kernels = lambda: Recorder(capability, triton_kernels)  # type: ignore[assignment]
    triton_launch._gradient_kernels = lambda: Recorder(capability, triton_gradient_kernels)  # type: ignore[assignment]
    image = torch.empty(2, 64, 64, 3 * heads * width, dtype=dtype, device='meta')
    table = torch.empty(sizes.table_rows, heads, device='meta')
    operands = (*image.chunk(3, dim=-1), table)
    out, lse = triton_launch.run_forward(*operands, sizes)
    triton_launch.run_backward(out, *operands, out, lse, sizes)


def launch_products(capability: int, dtype: torch.dtype, channels: int, hidden: int, squeezed: int) -> None:
    """The layers of a hybrid attention block over 64x64 pixels, without data."""
    triton_products._kernels = lambda: Recorder(capability, triton_product_kernels)  # type: ignore[assignment]

    def weight(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    def layer(outputs: int, *rest: int) -> Layer:
        return Layer(weight(outputs, *rest), weight(outputs))

    stream = torch.empty(1, 64, 64, channels, device='meta')
    norm = Norm(stream[0, 0, 0], stream[0, 0, 0], 1e-5)
    pixels, narrow = weight(*stream.shape), weight(1, 64, 64, squeezed)
    triton_products.linear(stream, layer(3 * channels, channels), norm=norm)
    scaled = pixels, weight(1, 1, 1, channels)
    triton_products.linear(pixels, layer(channels, channels), add=stream, scaled=scaled)
    triton_products.feed_forward(stream, norm, layer(hidden, channels), layer(channels, hidden))
    if dtype != torch.float32:  # those of fp32 go to cuDNN
        triton_products.convolution(pixels, layer(squeezed, channels, 3, 3)._replace(gelu=True))
        triton_products.convolution(narrow, layer(channels, squeezed, 3, 3))
        triton_products.convolution(pixels, layer(channels, channels, 3, 3), add=stream)


if __name__ == '__main__':
    capability, dtype, *numbers = sys.argv[1:]
    if len(numbers) == 3:
        launch_products(int(capability), getattr(torch, dtype), *map(int, numbers))
    else:
        heads, width, window, overlap, shift = map(int, numbers)
        launch(int(capability), getattr(torch, dtype), heads, width, Sizes(0.2, heads, window, overlap or None, shift))
