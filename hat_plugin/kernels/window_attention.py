"""Attention within windows on the CPU by a kernel of our own, as operators that torch.compile and torch.export see.

It is for inference: gradients are the business of `hat_plugin.layers`. The operators work without the compiled
library too, through torch's kernels, so that an exported network runs on a machine without a compiler.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hat_plugin.kernels.library import load
from hat_plugin.kernels.native import DTYPES, check_image, check_windows, empty_windows, run_image, run_windows
from hat_plugin.layers.windows import Region, overlapping_windows, shifted_regions, window_partition, window_reverse


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernel is there; if not, the reason has been logged once."""
    return load() is not None


def supports(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> bool:
    """Whether `window_attention` is the kernel to take: CPU, fp32 or bf16, no gradient wanted, library there."""
    tensors = (q, k, v, bias)
    return (
        all(x.device.type == 'cpu' and x.dtype in DTYPES for x in tensors)
        and q.dtype == k.dtype == v.dtype
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and available()
    )


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias + mask) v, for each window and head; softmax in fp32.

    Args:
        q: queries, (windows, heads, N, d), fp32 or bf16; any strides, like k and v, none is copied if the last is 1.
        k: keys, (windows, heads, M, d), in q's dtype.
        v: values, (windows, heads, M, d), in q's dtype.
        bias: (heads, N, M), fp32 or bf16 whatever q is.
        scale: factor of the products.
        mask: (N, M), added to the bias of every head, or None.

    Returns:
        (windows, heads, N, d) in q's dtype; in memory (windows, N, heads, d), as what follows reads it.

    Raises:
        ValueError: shapes or dtypes do not fit each other.
        RuntimeError: a gradient is asked for (in backward), or memory ran out.
    """
    return torch.ops.hat_plugin.window_attention(q, k, v, bias, mask, scale)


def image_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int | None = None,
    shift_size: int = 0,
    masks: Tensor | None = None,
) -> Tensor:
    """Attention within the windows of an image, in place: nothing is rolled, cut into windows or padded.

    Args:
        q: queries, (B, H, W, C), fp32 or bf16; may be a view of one qkv tensor, like k and v. H and W are multiples of
            window_size.
        k: keys, as q.
        v: values, as q.
        bias: (heads, N, M), fp32 or bf16, with N = window_size ** 2 and M = overlap_size ** 2.
        scale: factor of the products.
        num_heads: number of heads; divides C.
        window_size: side of a window in pixels.
        overlap_size: side of the window of keys, zeros beyond the image's border; None for window_size.
        shift_size: pixels by which windows are moved down and right, round the border; not with an overlap.
        masks: `hat_plugin.layers.windows.shift_masks`, (3, N, N); needed where shift_size is not 0.

    Returns:
        (B, H, W, C), contiguous, in q's dtype.

    Raises:
        ValueError: shapes, sizes or dtypes do not fit each other.
        RuntimeError: a gradient is asked for (in backward), or memory ran out.
    """
    overlap = window_size if overlap_size is None else overlap_size
    return torch.ops.hat_plugin.image_window_attention(
        q, k, v, bias, masks, scale, num_heads, window_size, overlap, shift_size
    )


@torch.library.custom_op(
    'hat_plugin::window_attention',
    mutates_args=(),
    device_types='cpu',
    schema='(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? mask, float scale) -> Tensor',
)
def _window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    check_windows(q, k, v, bias, mask)
    library = load()
    if library is not None:
        return run_windows(library, q, k, v, bias, mask, scale)
    logits = bias.to(q.dtype) if mask is None else (bias + mask).to(q.dtype)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=logits[None], scale=scale)
    return empty_windows(q).copy_(found)


@_window_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return empty_windows(q)


@torch.library.custom_op(
    'hat_plugin::image_window_attention',
    mutates_args=(),
    device_types='cpu',
    schema='(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? masks, float scale, int num_heads, int window_size, '
    'int overlap_size, int shift_size) -> Tensor',
)
def _image_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int,
    shift_size: int,
) -> Tensor:
    check_image(q, k, v, bias, masks, num_heads, window_size, overlap_size, shift_size)
    library = load()
    if library is None:
        return _plain_image(q, k, v, bias, masks, scale, num_heads, window_size, overlap_size, shift_size)
    return run_image(library, q, k, v, bias, masks, scale, num_heads, window_size, overlap_size, shift_size)


@_image_window_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int,
    shift_size: int,
) -> Tensor:
    return q.new_empty(q.shape)


def _plain_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    scale: float,
    num_heads: int,
    window_size: int,
    overlap_size: int,
    shift_size: int,
) -> Tensor:
    """`image_window_attention` in torch's own terms: for where the library is missing, and for tests."""
    height, width = q.shape[1:3]
    if shift_size:
        q, k, v = (torch.roll(x, (-shift_size, -shift_size), (1, 2)) for x in (q, k, v))
    q = window_partition(q, window_size)
    k, v = (overlapping_windows(x, window_size, overlap_size) for x in (k, v))
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.empty_like(q)
    rows, columns = height // window_size, width // window_size
    regions = shifted_regions(rows, columns) if shift_size else [Region(0, 0, rows, columns, None)]
    for top, left, down, across, mask in regions:
        logits = (bias if masks is None or mask is None else bias + masks[mask]).to(q.dtype)
        part = (slice(None), slice(top, top + down), slice(left, left + across))
        q_part, k_part, v_part = (x.unflatten(0, (-1, rows, columns))[part].flatten(0, 2) for x in (q, k, v))
        found = F.scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=logits[None], scale=scale)
        out.unflatten(0, (-1, rows, columns))[part] = found.unflatten(0, (-1, down, across))
    x = window_reverse(out.transpose(1, 2).flatten(2), window_size, height, width)
    return torch.roll(x, (shift_size, shift_size), (1, 2)) if shift_size else x.contiguous()
