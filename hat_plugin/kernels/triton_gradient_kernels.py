"""Device code of `triton_attention`'s gradients, built of what `triton_kernels` goes forward by and explains.

Source: the order of work within a window is that of "FlashAttention-2" (2023), algorithm 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hat_plugin.kernels.triton_kernels import _bias, _corner, _load, _mask, _pixels, _present, _product, _where


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
