"""Device code of `triton_attention`, which is where the arguments are explained. Importing it imports triton.

A program works on one head. Where a window lies in the image, which tokens the shift brought round and which row of the
table a pair uses is arithmetic on token numbers: nothing is cut, rolled, padded or gathered beforehand. Products take
the operands' type and sum in fp32; softmax and its gradient are fp32.

Known when a kernel is compiled: WINDOW and SIDE are sides of windows of queries and of keys, SHIFT moves both, CROSS is
the index of cross-attention, not that of self-attention, WIDTH is that of a head and PADDED the power of two that holds
it. ALIGNMENT is in bytes, that of a pixel's channels of a head in q, k and v.

Source: the order of work within a window is that of "FlashAttention-2" (2023), algorithms 1 and 2.
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


@triton.jit
def query_kernel(
    q, k, v, table, out, grad, lse, delta, grad_q, scale, height, width,
    stride_batch, stride_row, stride_column, out_batch, out_row, ALIGNMENT: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, SHIFT: tl.constexpr,
    CROSS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of queries, and delta = sum of out * grad over channels, which `key_kernel` reads."""
    BLOCKS: tl.constexpr = (WINDOW * WINDOW + BLOCK_Q - 1) // BLOCK_Q
    window = tl.program_id(0) // BLOCKS
    head = tl.program_id(1)
    batch, top, left = _corner(window, height, width, WINDOW, SHIFT)
    i = tl.program_id(0) % BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    y, x, inside = _pixels(top, left, i, height, width, WINDOW, WINDOW, SHIFT)
    present = _present(inside, WIDTH, PADDED)
    place = batch * stride_batch + y * stride_row + x * stride_column
    q_block = _load(q, place, present, head, ALIGNMENT, WIDTH, PADDED)
    out_place = batch * out_batch + y * out_row + x * (HEADS * WIDTH)
    grad_block = tl.load(_where(grad, out_place, head, WIDTH, PADDED), mask=present, other=0.0)
    out_block = tl.load(_where(out, out_place, head, WIDTH, PADDED), mask=present, other=0.0)
    of_query = (window.to(tl.int64) * HEADS + head) * (WINDOW * WINDOW) + i
    row_lse = tl.load(lse + of_query, mask=inside, other=float('inf'))
    row_delta = tl.sum(out_block.to(tl.float32) * grad_block.to(tl.float32), 1)
    tl.store(delta + of_query, row_delta, mask=inside)
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
        weights = tl.exp(logits - row_lse[:, None])
        of_logits = weights * (_product(grad_block, tl.trans(v_block), PRECISION, UPCAST) - row_delta[:, None])
        result += _product(of_logits.to(k_block.dtype), k_block, PRECISION, UPCAST)
    grad_place = _where(grad_q, out_place, head, WIDTH, PADDED)
    tl.store(grad_place, (result * scale).to(grad_q.dtype.element_ty), mask=present)


@triton.jit
def key_kernel(
    q, k, v, table, grad, lse, delta, grad_k, grad_v, sums, scale, height, width, windows, share,
    stride_batch, stride_row, stride_column, out_batch, out_row, ALIGNMENT: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, SHIFT: tl.constexpr,
    CROSS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, and of all its pairs' bias, over a share of the windows.

    All queries of a window at a time: the bias of the pairs stays in registers from one window to the next, as does
    the sum of their logits' gradients, which leaves them once, at the end.
    """
    head = tl.program_id(2)
    i, j = tl.arange(0, TOKENS), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    bias = _bias(table, head, i, j, WINDOW, SIDE, CROSS)
    pair_sums = tl.zeros((TOKENS, BLOCK_K), tl.float32)
    first = tl.program_id(0) * share
    for step in range(tl.minimum(share, windows - first)):
        window = first + step
        batch, top, left = _corner(window, height, width, WINDOW, SHIFT)
        y, x, inside = _pixels(top, left, i, height, width, WINDOW, WINDOW, SHIFT)
        present = _present(inside, WIDTH, PADDED)
        place = batch * stride_batch + y * stride_row + x * stride_column
        q_block = _load(q, place, present, head, ALIGNMENT, WIDTH, PADDED)
        place = batch * out_batch + y * out_row + x * (HEADS * WIDTH)
        grad_block = tl.load(_where(grad, place, head, WIDTH, PADDED), mask=present, other=0.0)
        y, x, there = _pixels(top, left, j, height, width, WINDOW, SIDE, SHIFT)
        here = _present(there, WIDTH, PADDED)
        place = batch * stride_batch + y * stride_row + x * stride_column
        k_block = _load(k, place, here, head, ALIGNMENT, WIDTH, PADDED)
        v_block = _load(v, place, here, head, ALIGNMENT, WIDTH, PADDED)
        of_query = (window.to(tl.int64) * HEADS + head) * (WINDOW * WINDOW) + i
        row_lse = tl.load(lse + of_query, mask=inside, other=float('inf'))  # no weight for what pads the block
        row_delta = tl.load(delta + of_query, mask=inside, other=0.0)
        logits = _product(q_block, tl.trans(k_block), PRECISION, UPCAST) * scale + bias
        if SHIFT > 0:  # noqa: SIM102 - known when compiled, the next is not
            if (top + WINDOW > height) | (left + WINDOW > width):
                logits += _mask(i, j, top, left, height, width, MASKED, WINDOW, SHIFT)
        weights = tl.exp(logits - row_lse[:, None])
        of_v = _product(tl.trans(weights.to(grad_block.dtype)), grad_block, PRECISION, UPCAST)
        of_logits = weights * (_product(grad_block, tl.trans(v_block), PRECISION, UPCAST) - row_delta[:, None])
        of_k = _product(tl.trans(of_logits.to(q_block.dtype)), q_block, PRECISION, UPCAST) * scale
        pair_sums += of_logits
        if SIDE > WINDOW:  # a key belongs to several windows: `overlap_kernel` adds them up
            place = (window.to(tl.int64) * (SIDE * SIDE) + j) * (HEADS * WIDTH)
        else:
            place = batch * out_batch + y * out_row + x * (HEADS * WIDTH)
        tl.store(_where(grad_k, place, head, WIDTH, PADDED), of_k.to(grad_k.dtype.element_ty), mask=here)
        tl.store(_where(grad_v, place, head, WIDTH, PADDED), of_v.to(grad_v.dtype.element_ty), mask=here)
    pair = ((tl.program_id(0) * HEADS + head) * (WINDOW * WINDOW) + i)[:, None] * (SIDE * SIDE) + j[None, :]
    tl.store(sums + pair, pair_sums, mask=(i < WINDOW * WINDOW)[:, None] & (j < SIDE * SIDE)[None, :])


@triton.jit
def table_kernel(
    sums, grad_table,
    HEADS: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, CROSS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of the table's rows (rows, heads): sums over pairs (heads, N, M), in a fixed order.

    A row is one difference of positions, for which each query has one key at most; neighbours read neighbouring keys.
    """
    DIFFERENCES: tl.constexpr = WINDOW + SIDE - 1
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    exists = row < DIFFERENCES * DIFFERENCES
    if CROSS:  # undo `_bias`: the rows are all differences in their order, turned by a constant
        turned = (row + (SIDE - 2) * (DIFFERENCES + 1)) % (DIFFERENCES * DIFFERENCES)
    else:
        turned = DIFFERENCES * DIFFERENCES - 1 - row
    down, right = turned // DIFFERENCES - (WINDOW - 1), turned % DIFFERENCES - (WINDOW - 1)
    result = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, WINDOW * WINDOW, BLOCK_Q):
        i = start + tl.arange(0, BLOCK_Q)
        y = (i // WINDOW)[:, None] + down[None, :]
        x = (i % WINDOW)[:, None] + right[None, :]
        pair = exists[None, :] & (i < WINDOW * WINDOW)[:, None] & (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)
        place = sums + (head * (WINDOW * WINDOW) + i)[:, None] * (SIDE * SIDE) + y * SIDE + x
        result += tl.sum(tl.load(place, mask=pair, other=0.0), 0)
    tl.store(grad_table + row * HEADS + head, result, mask=exists)


@triton.jit
def overlap_kernel(
    k_parts, v_parts, grad_k, grad_v, height, width, pixels,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of what each overlapping window has for a pixel: parts (windows, SIDE ** 2, C) to results (pixels, C)."""
    MARGIN: tl.constexpr = (SIDE - WINDOW) // 2
    REACH: tl.constexpr = (MARGIN + WINDOW - 1) // WINDOW
    head = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = pixel % width, pixel // width % height
    own = (pixel // width // WINDOW) * (width // WINDOW) + x // WINDOW  # the window that is the pixel's own
    inside = pixel < pixels
    of_k, of_v = tl.zeros((BLOCK, PADDED), tl.float32), tl.zeros((BLOCK, PADDED), tl.float32)
    for neighbour in range((2 * REACH + 1) * (2 * REACH + 1)):
        down, right = neighbour // (2 * REACH + 1) - REACH, neighbour % (2 * REACH + 1) - REACH
        top, left = (y // WINDOW + down) * WINDOW, (x // WINDOW + right) * WINDOW
        key_y, key_x = y - top + MARGIN, x - left + MARGIN
        seen = inside & (top >= 0) & (top < height) & (left >= 0) & (left < width)
        seen = seen & (key_y >= 0) & (key_y < SIDE) & (key_x >= 0) & (key_x < SIDE)
        window = (own + down * (width // WINDOW) + right).to(tl.int64)
        place = (window * (SIDE * SIDE) + key_y * SIDE + key_x) * (HEADS * WIDTH)
        here = _present(seen, WIDTH, PADDED)
        of_k += tl.load(_where(k_parts, place, head, WIDTH, PADDED), mask=here, other=0.0).to(tl.float32)
        of_v += tl.load(_where(v_parts, place, head, WIDTH, PADDED), mask=here, other=0.0).to(tl.float32)
    place, present = pixel.to(tl.int64) * (HEADS * WIDTH), _present(inside, WIDTH, PADDED)
    tl.store(_where(grad_k, place, head, WIDTH, PADDED), of_k.to(grad_k.dtype.element_ty), mask=present)
    tl.store(_where(grad_v, place, head, WIDTH, PADDED), of_v.to(grad_v.dtype.element_ty), mask=present)
