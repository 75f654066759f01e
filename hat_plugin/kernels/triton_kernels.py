"""Device code of `triton_attention` going forward. The arguments are explained there. Importing this imports triton.

A program works on one head. Where a window lies in the image, which tokens the shift brought round and which row of the
table a pair uses is arithmetic on token numbers: nothing is cut, rolled, padded or gathered beforehand. Products take
the operands' type and sum in fp32; softmax and its gradient are fp32.

Known when a kernel is compiled: WINDOW and SIDE are sides of windows of queries and of keys, SHIFT moves both, CROSS is
the index of cross-attention, not that of self-attention, WIDTH is that of a head and PADDED the power of two that holds
it. ALIGNMENT is in bytes, that of a pixel's channels of a head in q, k and v.

Source: the order of work within a window is that of "FlashAttention-2" (2023), algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _corner(window, height, width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Where a window is: its image in the batch, its first row and column, a shift included."""
    columns, rows = width // WINDOW, height // WINDOW
    row = window // columns
    return (row // rows).to(tl.int64), row % rows * WINDOW + SHIFT, window % columns * WINDOW + SHIFT


@triton.jit
def _pixels(top, left, token, height, width, WINDOW: tl.constexpr, SIDE: tl.constexpr, SHIFT: tl.constexpr):
    """Row and column of tokens of the window at this corner, and which are there; SIDE says whose tokens."""
    MARGIN: tl.constexpr = (SIDE - WINDOW) // 2
    y = token // SIDE + (top - MARGIN)
    x = token % SIDE + (left - MARGIN)
    inside = token < SIDE * SIDE
    if SHIFT > 0:
        y = tl.where(y < height, y, y - height)
        x = tl.where(x < width, x, x - width)
    if MARGIN > 0:
        inside = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y.to(tl.int64), x.to(tl.int64), inside


@triton.jit
def _where(image, offsets, head, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Pointers to a head's channels, (tokens, PADDED)."""
    return image + offsets[:, None] + (head * WIDTH + tl.arange(0, PADDED))[None, :]


@triton.jit
def _present(inside, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """(tokens, PADDED): neither a token that is not there nor a channel that belongs to the next head."""
    return inside[:, None] & (tl.arange(0, PADDED) < WIDTH)[None, :]


@triton.jit
def _load(image, offsets, present, head, ALIGNMENT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """(tokens, PADDED) of q, k or v; the compiler cannot see ALIGNMENT, and loads several channels at once by it."""
    where = _where(image, offsets, head, WIDTH, PADDED)
    return tl.load(tl.multiple_of(where, (1, ALIGNMENT)), mask=present, other=0.0)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a b, summed in fp32. UPCAST is for the interpreter, whose products take bf16 for integers."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _bias(table, head, i, j, WINDOW: tl.constexpr, SIDE: tl.constexpr, CROSS: tl.constexpr):
    """Bias of queries i and keys j from the table (heads, rows); minus infinity for keys beyond the window's last.

    Keys beyond the image's border are zeros that take part; only what pads a block does not.
    """
    DIFFERENCES: tl.constexpr = WINDOW + SIDE - 1
    query = i // WINDOW * DIFFERENCES + i % WINDOW
    key = j // SIDE * DIFFERENCES + j % SIDE
    if CROSS:  # as published: many rows are negative and count from the table's end
        row = (key + (WINDOW - SIDE + 1) * (DIFFERENCES + 1))[None, :] - query[:, None]
        row = tl.where(row < 0, row + DIFFERENCES * DIFFERENCES, row)
    else:
        row = (query + (WINDOW - 1) * (DIFFERENCES + 1))[:, None] - key[None, :]
    exists = (j < SIDE * SIDE)[None, :]
    place = table + head * (DIFFERENCES * DIFFERENCES) + row
    bias = tl.load(place, mask=(i < WINDOW * WINDOW)[:, None] & exists, other=0.0)
    return tl.where(exists, bias, float('-inf'))


@triton.jit
def _mask(i, j, top, left, height, width, MASKED: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """MASKED where the shift brought one of two tokens round the border and not the other; (queries, keys)."""
    below = tl.where(top + WINDOW > height, WINDOW - SHIFT, WINDOW)  # the first row that came round
    right = tl.where(left + WINDOW > width, WINDOW - SHIFT, WINDOW)
    query = (i // WINDOW >= below).to(tl.int32) * 2 + (i % WINDOW >= right).to(tl.int32)
    key = (j // WINDOW >= below).to(tl.int32) * 2 + (j % WINDOW >= right).to(tl.int32)
    return tl.where(query[:, None] != key[None, :], MASKED, 0.0)


@triton.jit
def forward_kernel(
    q, k, v, table, out, lse, scale, height, width,
    stride_batch, stride_row, stride_column, out_batch, out_row, ALIGNMENT: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, SHIFT: tl.constexpr,
    CROSS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one block of queries of one window and head; keys a block at a time."""
    BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    window = tl.program_id(0) // BLOCKS
    head = tl.program_id(1)
    batch, top, left = _corner(window, height, width, WINDOW, SHIFT)
    i = tl.program_id(0) % BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    y, x, inside = _pixels(top, left, i, height, width, WINDOW, WINDOW, SHIFT)
    present = _present(inside, WIDTH, PADDED)
    place = batch * stride_batch + y * stride_row + x * stride_column
    q_block = _load(q, place, present, head, ALIGNMENT, WIDTH, PADDED)
    out_place = _where(out, batch * out_batch + y * out_row + x * (HEADS * WIDTH), head, WIDTH, PADDED)
    largest = tl.full((BLOCK_Q,), float('-inf'), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    result = tl.zeros((BLOCK_Q, PADDED), tl.float32)
    for start in range(0, SIDE * SIDE, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        key_y, key_x, there = _pixels(top, left, j, height, width, WINDOW, SIDE, SHIFT)
        here = _present(there, WIDTH, PADDED)
        key_place = batch * stride_batch + key_y * stride_row + key_x * stride_column
        k_block = _load(k, key_place, here, head, ALIGNMENT, WIDTH, PADDED)
        v_block = _load(v, key_place, here, head, ALIGNMENT, WIDTH, PADDED)
        logits = _product(q_block, tl.trans(k_block), PRECISION, UPCAST) * scale
        logits += _bias(table, head, i, j, WINDOW, SIDE, CROSS)
        if SHIFT > 0:  # noqa: SIM102 - known when compiled, the next is not
            if (top + WINDOW > height) | (left + WINDOW > width):
                logits += _mask(i, j, top, left, height, width, MASKED, WINDOW, SHIFT)
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp(logits - larger[:, None])
        decay = tl.exp(largest - larger)
        total = total * decay + tl.sum(weights, 1)
        result = result * decay[:, None] + _product(weights.to(v_block.dtype), v_block, PRECISION, UPCAST)
        largest = larger
    tl.store(out_place, (result / total[:, None]).to(out.dtype.element_ty), mask=present)
    of_query = (window.to(tl.int64) * HEADS + head) * (WINDOW * WINDOW) + i
    tl.store(lse + of_query, largest + tl.log(total), mask=inside)


@triton.jit
def resident_kernel(
    q, k, v, table, out, lse, scale, height, width, windows, share,
    stride_batch, stride_row, stride_column, out_batch, out_row, ALIGNMENT: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, SHIFT: tl.constexpr,
    CROSS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """`forward_kernel` for one block of queries of each of a share of the windows, all keys at a time.

    The bias of the pairs stays in registers from one window to the next, and no sum is ever rescaled.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    head = tl.program_id(0) // BLOCKS
    i = tl.program_id(0) % BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    j = tl.arange(0, TOKENS)
    bias = _bias(table, head, i, j, WINDOW, SIDE, CROSS) * LOG2E
    first = tl.program_id(1) * share
    for step in range(tl.minimum(share, windows - first)):
        window = first + step
        batch, top, left = _corner(window, height, width, WINDOW, SHIFT)
        y, x, inside = _pixels(top, left, i, height, width, WINDOW, WINDOW, SHIFT)
        present = _present(inside, WIDTH, PADDED)
        place = batch * stride_batch + y * stride_row + x * stride_column
        q_block = _load(q, place, present, head, ALIGNMENT, WIDTH, PADDED)
        out_place = _where(out, batch * out_batch + y * out_row + x * (HEADS * WIDTH), head, WIDTH, PADDED)
        y, x, there = _pixels(top, left, j, height, width, WINDOW, SIDE, SHIFT)
        here = _present(there, WIDTH, PADDED)
        place = batch * stride_batch + y * stride_row + x * stride_column
        k_block = _load(k, place, here, head, ALIGNMENT, WIDTH, PADDED)
        v_block = _load(v, place, here, head, ALIGNMENT, WIDTH, PADDED)
        logits = _product(q_block, tl.trans(k_block), PRECISION, UPCAST) * (scale * LOG2E) + bias
        if SHIFT > 0:  # noqa: SIM102 - known when compiled, the next is not
            if (top + WINDOW > height) | (left + WINDOW > width):
                logits += _mask(i, j, top, left, height, width, MASKED * LOG2E, WINDOW, SHIFT)
        largest = tl.max(logits, 1)
        weights = tl.exp2(logits - largest[:, None])
        total = tl.sum(weights, 1)
        result = _product(weights.to(v_block.dtype), v_block, PRECISION, UPCAST) / total[:, None]
        tl.store(out_place, result.to(out.dtype.element_ty), mask=present)
        of_query = (window.to(tl.int64) * HEADS + head) * (WINDOW * WINDOW) + i
        tl.store(lse + of_query, (largest + tl.log2(total)) / LOG2E, mask=inside)
