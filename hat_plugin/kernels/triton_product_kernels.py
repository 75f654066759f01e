"""Device code of `triton_products`, which is where the arguments are explained. Importing it imports triton.

Triton's blocks are powers of two and HAT has 180 channels: a pixel's channels are two blocks, MAIN, the largest power
of two within them, and REST, the power of two that holds what is left (0: nothing is). 192 columns are multiplied so,
in the place of 256. Products take the weights' type and sum in fp32; all else is fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hat_plugin.kernels.triton_kernels import _product


@triton.jit
def _gelu(x):
    """Exact, by the error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _part(x, row, inside, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels from FIRST on of rows (rows, CHANNELS) as fp32, zeros where there are none."""
    column = FIRST + tl.arange(0, SIZE)
    here = inside[:, None] & (column < CHANNELS)[None, :]
    return tl.load(x + row[:, None] * CHANNELS + column[None, :], mask=here, other=0.0).to(tl.float32)


@triton.jit
def _scaled(x, mean, scale, weight, bias, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels normalised; those that pad stay zeros."""
    column = FIRST + tl.arange(0, SIZE)
    by = tl.load(weight + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    plus = tl.load(bias + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    return (x - mean[:, None]) * scale[:, None] * by[None, :] + plus[None, :]


@triton.jit
def _squares(x, mean, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of squared distances from the mean; of channels that pad nothing."""
    column = FIRST + tl.arange(0, SIZE)
    apart = tl.where((column < CHANNELS)[None, :], x - mean[:, None], 0.0)
    return tl.sum(apart * apart, 1)


@triton.jit
def _operand(
    x, row, inside, norm_weight, norm_bias, eps, like, NORM: tl.constexpr, CHANNELS: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """Both blocks of rows of x, normalised if NORM, in the type of `like`; without a REST the first one twice."""
    main = _part(x, row, inside, 0, MAIN, CHANNELS)
    rest = main
    if REST > 0:
        rest = _part(x, row, inside, MAIN, REST, CHANNELS)
    if NORM:
        total = tl.sum(main, 1)
        if REST > 0:
            total += tl.sum(rest, 1)
        mean = total / CHANNELS
        squares = _squares(main, mean, 0, MAIN, CHANNELS)
        if REST > 0:
            squares += _squares(rest, mean, MAIN, REST, CHANNELS)
        scale = tl.rsqrt(squares / CHANNELS + eps)
        main = _scaled(main, mean, scale, norm_weight, norm_bias, 0, MAIN, CHANNELS)
        if REST > 0:
            rest = _scaled(rest, mean, scale, norm_weight, norm_bias, MAIN, REST, CHANNELS)
    return main.to(like.dtype.element_ty), rest.to(like.dtype.element_ty)


@triton.jit
def _turned(
    weight, output, FIRST: tl.constexpr, SIZE: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Columns from FIRST on of rows `output` of a weight (OUTPUTS, INPUTS), turned: (SIZE, outputs); rows are APART."""
    column = FIRST + tl.arange(0, SIZE)
    here = (column < INPUTS)[:, None] & (output < OUTPUTS)[None, :]
    return tl.load(weight + output[None, :] * APART + column[:, None], mask=here, other=0.0)


@triton.jit
def _store(out, value, row, inside, column, CHANNELS: tl.constexpr):
    """Columns of rows (rows, CHANNELS)."""
    here = inside[:, None] & (column < CHANNELS)[None, :]
    tl.store(out + row[:, None] * CHANNELS + column[None, :], value.to(out.dtype.element_ty), mask=here)


@triton.jit
def linear_kernel(
    x, norm_weight, norm_bias, eps, weight, bias, add, features, factor, normed, out, rows, pixels,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A linear layer over a block of rows, normalised before, and what is added; the normalised rows too."""
    row = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = row < rows - first
    x, out = x + first * INPUTS, out + first * OUTPUTS
    main, rest = _operand(x, row, inside, norm_weight, norm_bias, eps, weight, NORM, INPUTS, MAIN, REST)
    if NORM:
        normed += first * INPUTS
        _store(normed, main, row, inside, tl.arange(0, MAIN), INPUTS)
        if REST > 0:
            _store(normed, rest, row, inside, MAIN + tl.arange(0, REST), INPUTS)
    for start in range(0, OUTPUTS, BLOCK_OUT):
        output = start + tl.arange(0, BLOCK_OUT)
        result = _product(main, _turned(weight, output, 0, MAIN, INPUTS, OUTPUTS, INPUTS), PRECISION, UPCAST)
        if REST > 0:
            result += _product(rest, _turned(weight, output, MAIN, REST, INPUTS, OUTPUTS, INPUTS), PRECISION, UPCAST)
        here = output < OUTPUTS
        if BIAS:
            result += tl.load(bias + output, mask=here, other=0.0).to(tl.float32)[None, :]
        place = row[:, None] * OUTPUTS + output[None, :]
        there = inside[:, None] & here[None, :]
        if ADD:
            result += tl.load(add + first * OUTPUTS + place, mask=there, other=0.0).to(tl.float32)
        if SCALED:
            sample = ((first + row) // pixels).to(tl.int32)
            by = tl.load(factor + sample[:, None] * OUTPUTS + output[None, :], mask=there, other=0.0)
            result += tl.load(features + first * OUTPUTS + place, mask=there, other=0.0).to(tl.float32) * by.to(
                tl.float32
            )
        tl.store(out + place, result.to(out.dtype.element_ty), mask=there)


@triton.jit
def feed_forward_kernel(
    x, norm_weight, norm_bias, eps, weight1, bias1, weight2, bias2, out, rows,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """x + an MLP with a GELU over x normalised; nothing of its hidden channels is ever in memory."""
    row = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = row < rows - first
    x, out = x + first * CHANNELS, out + first * CHANNELS
    main, rest = _operand(x, row, inside, norm_weight, norm_bias, eps, weight1, True, CHANNELS, MAIN, REST)
    of_main = tl.zeros((BLOCK, MAIN), tl.float32)
    of_rest = tl.zeros((BLOCK, REST if REST > 0 else 1), tl.float32)
    for start in range(0, HIDDEN, BLOCK_HIDDEN):
        hidden = start + tl.arange(0, BLOCK_HIDDEN)
        there = hidden < HIDDEN
        y = _product(main, _turned(weight1, hidden, 0, MAIN, CHANNELS, HIDDEN, CHANNELS), PRECISION, UPCAST)
        if REST > 0:
            y += _product(rest, _turned(weight1, hidden, MAIN, REST, CHANNELS, HIDDEN, CHANNELS), PRECISION, UPCAST)
        y += tl.load(bias1 + hidden, mask=there, other=0.0).to(tl.float32)[None, :]
        y = _gelu(y).to(weight2.dtype.element_ty)
        of_main += _product(y, _down(weight2, hidden, there, 0, MAIN, CHANNELS, HIDDEN), PRECISION, UPCAST)
        if REST > 0:
            of_rest += _product(y, _down(weight2, hidden, there, MAIN, REST, CHANNELS, HIDDEN), PRECISION, UPCAST)
    _add(x, of_main, bias2, out, row, inside, 0, MAIN, CHANNELS)
    if REST > 0:
        _add(x, of_rest, bias2, out, row, inside, MAIN, REST, CHANNELS)


@triton.jit
def _down(
    weight, hidden, there, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr
):  # fmt: skip
    """Hidden channels and outputs from FIRST on of a weight (CHANNELS, HIDDEN), turned: (hidden, SIZE)."""
    output = FIRST + tl.arange(0, SIZE)
    here = there[:, None] & (output < CHANNELS)[None, :]
    return tl.load(weight + output[None, :] * HIDDEN + hidden[:, None], mask=here, other=0.0)


@triton.jit
def _add(
    x, value, bias, out, row, inside, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Store value + bias + x, channels from FIRST on."""
    column = FIRST + tl.arange(0, SIZE)
    value += tl.load(bias + column, mask=column < CHANNELS, other=0.0).to(tl.float32)[None, :]
    value += _part(x, row, inside, FIRST, SIZE, CHANNELS)
    _store(out, value, row, inside, column, CHANNELS)


@triton.jit
def convolution_kernel(
    x, weight, bias, add, out, rows, height, width,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BIAS: tl.constexpr,
    GELU: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A 3x3 convolution, zeros beyond the border, of a block of pixels; the weight is (OUTPUTS, 3, 3, INPUTS)."""
    row = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = row < rows - first
    at_x, at_y = ((first + row) % width).to(tl.int32), ((first + row) // width % height).to(tl.int32)
    x, out = x + first * INPUTS, out + first * OUTPUTS
    output = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    here = output < OUTPUTS
    result = tl.zeros((BLOCK, BLOCK_OUT), tl.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        seen = inside & (at_y + down >= 0) & (at_y + down < height) & (at_x + right >= 0) & (at_x + right < width)
        place = row + down * width + right
        by = weight + tap * INPUTS
        seen_main = _seen(x, place, seen, 0, MAIN, INPUTS)
        result += _product(seen_main, _turned(by, output, 0, MAIN, INPUTS, OUTPUTS, 9 * INPUTS), PRECISION, UPCAST)
        if REST > 0:
            seen_rest = _seen(x, place, seen, MAIN, REST, INPUTS)
            result += _product(
                seen_rest, _turned(by, output, MAIN, REST, INPUTS, OUTPUTS, 9 * INPUTS), PRECISION, UPCAST
            )
    if BIAS:
        result += tl.load(bias + output, mask=here, other=0.0).to(tl.float32)[None, :]
    if GELU:
        result = _gelu(result)
    place = row[:, None] * OUTPUTS + output[None, :]
    there = inside[:, None] & here[None, :]
    if ADD:
        result += tl.load(add + first * OUTPUTS + place, mask=there, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=there)


@triton.jit
def _seen(x, row, inside, FIRST: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """`_part` in its own type."""
    column = FIRST + tl.arange(0, SIZE)
    here = inside[:, None] & (column < CHANNELS)[None, :]
    return tl.load(x + row[:, None] * CHANNELS + column[None, :], mask=here, other=0.0)
