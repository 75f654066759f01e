"""Attention within windows on the CPU by a kernel of our own, as operators that torch.compile and torch.export see.

`window_attention` works on windows that have been cut out, for inference; `image_window_attention` on an image as it
is, with gradients. Both work without the compiled library too, through torch's kernels, so that an exported network
runs on a machine without a compiler.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hat_plugin.kernels.geometry import (
    DTYPES,
    Geometry,
    check_image,
    check_windows,
    empty_image,
    empty_windows,
)
from hat_plugin.kernels.library import load
from hat_plugin.kernels.native import run_gather, run_image, run_image_gradient, run_windows
from hat_plugin.kernels.operands import has_tangents, is_exported, is_traced
from hat_plugin.layers.windows import overlapping_windows, shifted_regions, window_partition, window_reverse


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
        and not (is_exported() or has_tangents())
        and available()
    )


def supports_image(qkv: Tensor) -> bool:
    """Whether `image_window_attention` is the kernel to take: CPU, fp32 or bf16, library there."""
    fits = qkv.device.type == 'cpu' and qkv.dtype in DTYPES
    return fits and not (is_exported() or has_tangents()) and available()


def gathered_bias(table: Tensor, index: Tensor) -> Tensor | None:
    """`run_gather` where it is the one to take: plain tensors on the CPU, fp32 or bf16, no gradient wanted; else None.

    For HAT's windows it took 0.10 ms in the place of `index_select`'s 1.00 in bf16, 0.18 in the place of 0.22 in fp32.
    """
    learning = torch.is_grad_enabled() and table.requires_grad
    if learning or is_traced():
        return None
    plain = type(table) in (Tensor, nn.Parameter) and type(index) is Tensor
    if not plain or table.device.type != 'cpu' or index.device.type != 'cpu' or table.dtype not in DTYPES:
        return None
    library = load()
    return None if library is None else run_gather(library, table, index)


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
    qkv: Tensor,
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

    It has gradients for qkv and bias; the weights are computed anew for them, none is kept.

    Args:
        qkv: queries, keys and values, (B, H, W, 3 * C), fp32 or bf16. H and W are multiples of window_size.
        bias: (heads, N, M), fp32 or bf16, with N = window_size ** 2 and M = overlap_size ** 2.
        scale: factor of the products.
        num_heads: number of heads; divides C.
        window_size: side of a window in pixels.
        overlap_size: side of the window of keys, zeros beyond the image's border; None for window_size.
        shift_size: pixels by which windows are moved down and right, round the border; not with an overlap.
        masks: `hat_plugin.layers.windows.shift_masks`, (3, N, N); needed where shift_size is not 0.

    Returns:
        (B, H, W, C), contiguous, in qkv's dtype.

    Raises:
        ValueError: shapes, sizes or dtypes do not fit each other.
        RuntimeError: memory ran out.
    """
    geometry = Geometry(scale, num_heads, window_size, overlap_size or window_size, shift_size)
    if not available():
        check_image(qkv, bias, masks, geometry)
        return plain_image_attention(qkv, bias, masks, geometry)
    return torch.ops.hat_plugin.image_window_attention(qkv, bias, masks, *astuple(geometry))[0]


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


_GEOMETRY = 'float scale, int num_heads, int window_size, int overlap_size, int shift_size'


@torch.library.custom_op(
    'hat_plugin::image_window_attention',
    mutates_args=(),
    device_types='cpu',
    schema=f'(Tensor qkv, Tensor bias, Tensor? masks, {_GEOMETRY}) -> (Tensor out, Tensor softmax)',
)
def _image_window_attention(qkv: Tensor, bias: Tensor, masks: Tensor | None, *sizes: Any) -> tuple[Tensor, Tensor]:
    geometry = Geometry(*sizes)
    check_image(qkv, bias, masks, geometry)
    library = load()
    if library is None:  # and so will be the gradient's, which alone asks for the other
        return plain_image_attention(qkv, bias, masks, geometry), empty_image(qkv, geometry)[1].fill_(torch.nan)
    return run_image(library, qkv, bias, masks, geometry)


@_image_window_attention.register_fake
def _(qkv: Tensor, bias: Tensor, masks: Tensor | None, *sizes: Any) -> tuple[Tensor, Tensor]:
    return empty_image(qkv, Geometry(*sizes))


@torch.library.custom_op(
    'hat_plugin::image_window_attention_backward',
    mutates_args=(),
    device_types='cpu',
    schema=f'(Tensor grad, Tensor qkv, Tensor out, Tensor softmax, Tensor bias, Tensor? masks, {_GEOMETRY}) -> '
    '(Tensor, Tensor)',
)
def _image_gradient(
    grad: Tensor, qkv: Tensor, out: Tensor, softmax: Tensor, bias: Tensor, masks: Tensor | None, *sizes: Any
) -> tuple[Tensor, Tensor]:
    library = load()
    if library is None:
        raise RuntimeError(
            'the C++ attention kernel that made the output is gone: `python -m hat_plugin.kernels.build`'
        )
    return run_image_gradient(library, grad, qkv, out, softmax, bias, masks, Geometry(*sizes))


@_image_gradient.register_fake
def _(
    grad: Tensor, qkv: Tensor, out: Tensor, softmax: Tensor, bias: Tensor, masks: Tensor | None, *sizes: Any
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, masks, *ctx.sizes = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, *output, bias, masks)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = torch.ops.hat_plugin.image_window_attention_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return (*found, None, *(None for _ in ctx.sizes))


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, qkv, _, _, bias, masks, *ctx.sizes = inputs
    ctx.save_for_backward(grad, qkv, bias, masks)


def _differentiate_twice(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Through the plain formula: rare, so memory is not minded."""
    *given, masks = ctx.saved_tensors
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        inputs = grad, qkv, bias = [x.detach().requires_grad_() for x in given]
        out = plain_image_attention(qkv, bias, masks, Geometry(*ctx.sizes))
        first = torch.autograd.grad(out, (qkv, bias), grad_outputs=grad, create_graph=True)
    of_grad, of_qkv, of_bias = torch.autograd.grad(first, inputs, grad_outputs=grads)
    # The output and its sums are functions of qkv and bias: what goes through them is in these already.
    return of_grad, of_qkv, None, None, of_bias, None, *(None for _ in ctx.sizes)


torch.library.register_autograd('hat_plugin::image_window_attention', _differentiate, setup_context=_save)
torch.library.register_autograd(
    'hat_plugin::image_window_attention_backward', _differentiate_twice, setup_context=_save_gradient
)


def plain_image_attention(qkv: Tensor, bias: Tensor, masks: Tensor | None, geometry: Geometry) -> Tensor:
    """`image_window_attention` in torch's own terms: for where the library is missing, and for tests."""
    side, heads, shift = geometry.window_size, geometry.num_heads, geometry.shift_size
    height, width = qkv.shape[1:3]
    rows, columns = height // side, width // side
    if shift:
        qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
    q, k, v = qkv.chunk(3, dim=-1)
    q = window_partition(q, side)
    k, v = (overlapping_windows(x, side, geometry.overlap_size) for x in (k, v))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).unflatten(0, (-1, rows, columns)) for x in (q, k, v))
    bands: list[list[Tensor]] = []
    for top, left, down, across, mask in shifted_regions(rows, columns, shift > 0):
        bands += [[]] if left == 0 else []
        logits = (bias if masks is None or mask is None else bias + masks[mask]).to(q.dtype)
        part = (slice(None), slice(top, top + down), slice(left, left + across))
        some_q, some_k, some_v = (x[part].flatten(0, 2) for x in (q, k, v))
        found = F.scaled_dot_product_attention(some_q, some_k, some_v, attn_mask=logits[None], scale=geometry.scale)
        bands[-1].append(found.unflatten(0, (-1, down, across)))
    out = torch.cat([torch.cat(band, dim=2) for band in bands], dim=1)
    x = window_reverse(out.flatten(0, 2).transpose(1, 2).flatten(2), side, height, width)
    return torch.roll(x, (shift, shift), (1, 2)) if shift else x.contiguous()
