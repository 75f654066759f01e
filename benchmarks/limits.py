"""The limit: what the matrix products of a network would take alone, at the rate that this machine reaches."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn

from benchmarks.networks import PUBLISHED, SWINIR, Contender, build
from hat_plugin.compare.timing import Call, Sample
from hat_plugin.engine.macs import count_macs

ROWS, CHANNELS, HIDDEN, SQUEEZED = 4096, 180, 540, 60  # HAT at 64x64: qkv's linear layer, and a convolution of a CAB
CUDA_SIDE = 512  # in the place of 64: less than this keeps no large GPU busy


def side_of(device: torch.device) -> int:
    """Of the image that the products work on, in pixels."""
    return CUDA_SIDE if device.type == 'cuda' else math.isqrt(ROWS)


def product_flops(device: torch.device) -> dict[str, int]:
    """What the two products are called, and their work."""
    side = side_of(device)
    return {
        f'linear {CHANNELS}->{HIDDEN}, {side * side} rows': 2 * side * side * CHANNELS * HIDDEN,
        f'conv3x3 {CHANNELS}->{SQUEEZED}, {side}x{side}': 2 * side * side * CHANNELS * SQUEEZED * 9,
    }


def products(device: torch.device, dtype: torch.dtype) -> dict[str, Call]:
    """The two products, as calls: name, followed by the type."""
    linear = nn.Linear(CHANNELS, HIDDEN).to(device, dtype)
    convolution = nn.Conv2d(CHANNELS, SQUEEZED, 3, padding=1, device=device, dtype=dtype)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    side = side_of(device)
    tokens = torch.rand(side * side, CHANNELS).to(device, dtype)
    image = torch.rand(1, CHANNELS, side, side).to(device, dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def multiply() -> None:
        linear(tokens)

    @torch.no_grad()
    def convolve() -> None:
        convolution(image)

    names = [f'{name}, {short(dtype)}' for name in product_flops(device)]
    return dict(zip(names, (multiply, convolve), strict=True))


def short(dtype: torch.dtype) -> str:
    """'fp32' or 'bf16'."""
    return {torch.float32: 'fp32', torch.bfloat16: 'bf16'}[dtype]


def rates(
    samples: dict[str, list[Sample]], device: torch.device, dtype: torch.dtype, clock: str
) -> dict[str, list[float]]:
    """FLOP/s of the products of this type, a value for each round."""
    return {
        product: [flops / max(sample.seconds(clock), 1e-9) for sample in samples[f'{product}, {short(dtype)}']]
        for product, flops in product_flops(device).items()
    }


@cache
def forward_flops(network: str, code: str, side: int) -> int:
    """Two for each multiply-accumulate of a forward pass over one (3, side, side) image; attention products are in."""
    unit = 64  # all windows divide it: above it, cost is proportional to the area
    if side > unit and side % unit == 0:
        return forward_flops(network, code, unit) * (side // unit) ** 2
    counted = SWINIR if code == SWINIR else PUBLISHED  # ours computes the same: it is not asked how much work it has
    return 2 * count_macs(build(network, Contender(counted)), (1, 3, side, side)).total
