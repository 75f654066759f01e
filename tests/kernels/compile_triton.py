"""Compile what `triton_launch` would launch for a GPU that is not here: ``python compile_triton.py CAPABILITY ...``.

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

from hat_plugin.kernels import triton_kernels, triton_launch
from hat_plugin.kernels.triton_launch import Sizes

TYPES = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.float16: '*fp16'}
OPTIONS = ('num_warps', 'num_stages')


class Recorder:
    """Stands for the module of kernels and for a kernel: compiles where the true one would launch."""

    def __init__(self, capability: int, kernel: Any = None) -> None:
        self.capability = capability
        self.kernel = kernel

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self.capability, getattr(triton_kernels, name))

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        values = {**dict(zip(self.kernel.arg_names, arguments, strict=False)), **named}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr:
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
    triton_launch._kernels = lambda: Recorder(capability)  # type: ignore[assignment]
    image = torch.empty(2, 64, 64, 3 * heads * width, dtype=dtype, device='meta')
    table = torch.empty(sizes.table_rows, heads, device='meta')
    operands = (*image.chunk(3, dim=-1), table)
    out, lse = triton_launch.run_forward(*operands, sizes)
    triton_launch.run_backward(out, *operands, out, lse, sizes)


if __name__ == '__main__':
    capability, dtype, heads, width, window, overlap, shift = sys.argv[1:]
    numbers = Sizes(0.2, int(heads), int(window), int(overlap) or None, int(shift))
    launch(int(capability), getattr(torch, dtype), int(heads), int(width), numbers)
