"""Attention within the windows of an image by Triton kernels of our own, forward and backward, as torch operators.

Nothing of (windows, heads, N, M) is ever in memory. Kept for the backward pass are the output and the log-sum-exp of
each query and head; what the backward pass takes for itself is

- for overlapping windows, the gradients of keys and values by window: M / N times (2.25 as published) those gradients.
  Adding them up afterwards needs no atomics, so that the order of the sum is fixed, and each product is computed
  once; gathering by pixel would compute most pairs' several times, since a block of keys is not all in a window;
- for the table, a tile of summed gradients for each of some 512 programs: 17 MB at window 16, whatever the image and
  the batch. A program sums over its share of the windows in registers. Atomics into the table would save the 17 MB and
  lose the fixed order: training would not repeat itself to the bit.

Triton is imported when a kernel is first wanted. On the CPU its interpreter runs the kernels, slowly: for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hat_plugin.kernels.operands import ordinary
from hat_plugin.kernels.triton_launch import Sizes, check, empty_outputs, run_backward, run_forward
from hat_plugin.layers.windows import (
    overlapping_position_index,
    overlapping_windows,
    relative_position_index,
    shift_masks,
    window_partition,
    window_reverse,
)


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int | None = None,
    shift_size: int = 0,
) -> Tensor:
    """Attention within the windows of an image, in place: nothing is rolled, cut into windows, padded or gathered.

    Args:
        q: queries, (B, H, W, C), fp32, bf16 or fp16; H and W are multiples of window_size. Views of one qkv tensor are
            not copied.
        k: keys, as q.
        v: values, as q.
        table: relative position bias, (rows, heads), its rows those of `relative_position_index` or, with an
            overlap_size, of `overlapping_position_index`; fp32, bf16 or fp16 whatever q is.
        scale: factor of the products.
        num_heads: number of heads; divides C.
        window_size: side of a window in pixels, 2 or more; up to 16 fits into registers.
        overlap_size: side of a window of keys, zeros beyond the image's border; None for self-attention.
        shift_size: pixels by which windows are moved down and right, round the border, with the mask of `shift_masks`;
            not with an overlap_size.

    Returns:
        (B, H, W, C), contiguous, in q's dtype, with gradients for q, k, v and table; gradients of gradients come by
        the plain formula.

    Raises:
        ValueError: shapes, sizes, dtypes or devices do not fit each other.
        TritonError: triton is not installed, or tensors are on the CPU and triton's interpreter is off.
    """
    numbers = (scale, num_heads, window_size, overlap_size, shift_size)
    if not torch.is_grad_enabled() and ordinary('cuda' if q.is_cuda else 'cpu', q, k, v, table):
        sizes = Sizes(*numbers)  # a launch costs the host time enough without torch's dispatcher
        check(q, k, v, table, sizes)
        return run_forward(q, k, v, table.detach(), sizes)[0]
    result: Tensor = torch.ops.hat_plugin.triton_attention(q, k, v, table, *numbers)[0]
    return result


def plain_image_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, sizes: Sizes) -> Tensor:
    """`triton_attention` as the paper writes it, each step a tensor of its own, in any dtype."""
    _, height, width, _ = q.shape
    window, side, shift = sizes.window_size, sizes.side, sizes.shift_size
    q, k, v = (torch.roll(x, (-shift, -shift), (1, 2)) for x in (q, k, v))
    cut = (window_partition(q, window), overlapping_windows(k, window, side), overlapping_windows(v, window, side))
    q, k, v = (x.unflatten(-1, (sizes.num_heads, -1)).transpose(1, 2) for x in cut)
    if sizes.overlap_size is None:
        index = relative_position_index(window)
    else:
        index = overlapping_position_index(window, side).remainder(sizes.table_rows)
    bias = table.to(q.dtype)[index.to(table.device)].permute(2, 0, 1)
    logits = (q * sizes.scale) @ k.transpose(-2, -1) + bias
    if shift:
        row, column, corner = shift_masks(window, shift).to(q)
        masks = torch.zeros(height // window, width // window, *row.shape).to(q)
        masks[-1], masks[:, -1], masks[-1, -1] = row, column, corner
        logits = (logits.unflatten(0, (-1, *masks.shape[:2])) + masks[:, :, None]).flatten(0, 2)
    windows = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return torch.roll(window_reverse(windows, window, height, width), (shift, shift), (1, 2))


@torch.library.custom_op(
    'hat_plugin::triton_attention',
    mutates_args=(),
    schema='(Tensor q, Tensor k, Tensor v, Tensor table, float scale, int num_heads, int window_size, '
    'int? overlap_size, int shift_size) -> (Tensor, Tensor)',
)
def _forward(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    sizes = Sizes(*numbers)
    check(q, k, v, table, sizes)
    return run_forward(q, k, v, table, sizes)


@_forward.register_fake
def _forward_shape(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    return empty_outputs(q, Sizes(*numbers))


@torch.library.custom_op(
    'hat_plugin::triton_attention_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor table, Tensor out, Tensor lse, float scale, '
    'int num_heads, int window_size, int? overlap_size, int shift_size) -> (Tensor, Tensor, Tensor, Tensor)',
)
def _backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, table, out, lse, *numbers = inputs
    return run_backward(grad, q, k, v, table, out, lse, Sizes(*numbers))


@_backward.register_fake
def _backward_shape(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, table = inputs[:4]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), table.new_empty(table.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, table, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.hat_plugin.triton_attention_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    return (*found, *(None for _ in ctx.numbers))


def _save_again(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, q, k, v, table, _, _, *ctx.numbers = inputs
    ctx.save_for_backward(grad, q, k, v, table)


def _twice(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Through the plain formula, of which output and log-sum-exp are no arguments: rare, so memory is not minded."""
    with torch.enable_grad():
        inputs = grad, q, k, v, table = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        plain = plain_image_attention(q, k, v, table, Sizes(*ctx.numbers))
        first = torch.autograd.grad(plain, (q, k, v, table), grad_outputs=grad, create_graph=True)
    return (*torch.autograd.grad(first, inputs, grad_outputs=grads), None, None, *(None for _ in ctx.numbers))


torch.library.register_autograd('hat_plugin::triton_attention', _differentiate, setup_context=_save)
torch.library.register_autograd('hat_plugin::triton_attention_backward', _twice, setup_context=_save_again)
