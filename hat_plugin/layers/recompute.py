"""Attention that learns its bias and keeps nothing of (windows, heads, N, M) for the backward pass.

torch's fused kernel on the CPU has no gradient for the bias; a plain path keeps the weights of every window and head,
which is most of the memory that training HAT takes. Here the forward pass is the fused kernel, and the backward pass
computes the weights anew, a few windows of one head at a time, so that they stay in the cache, and sums the bias's
gradient over windows as it goes.

Both passes are operators of torch.library: torch.compile takes each as one node, and a backward pass of the backward
pass (a gradient penalty) goes through the plain formula.

Source: recomputation as in "FlashAttention" (NeurIPS 2022), section 3.1, without its tiling within a window.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHE = 1 << 20  # bytes of attention weights at a time and thread: about a core's second-level cache


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention as the paper writes it. Arguments as in `recomputed_attention`."""
    return ((q * scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v


def recomputed_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale + bias) v, with gradients for all four and memory for none of the weights.

    Args:
        q: queries, (windows, heads, N, d); may be a strided view, like k and v.
        k: keys, (windows, heads, M, d), in q's dtype.
        v: values, (windows, heads, M, d), in q's dtype.
        bias: (heads, N, M), in q's dtype.
        scale: factor of the products.

    Returns:
        (windows, heads, N, d), in q's dtype.
    """
    result: Tensor = torch.ops.hat_plugin.recomputed_attention(q, k, v, bias, scale)
    return result


@torch.library.custom_op(
    'hat_plugin::recomputed_attention',
    mutates_args=(),
    schema='(Tensor q, Tensor k, Tensor v, Tensor bias, float scale) -> Tensor',
)
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    with torch.no_grad():
        mask = bias.detach()[None]
        result = F.scaled_dot_product_attention(q.detach(), k.detach(), v.detach(), attn_mask=mask, scale=scale)
    return result.transpose(1, 2).contiguous().transpose(1, 2)  # as the fused kernel lays it out: usually no copy


@_forward.register_fake
def _forward_shape(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    windows, heads, tokens, width = q.shape
    return q.new_empty(windows, tokens, heads, width).transpose(1, 2)


@torch.library.custom_op(
    'hat_plugin::recomputed_attention_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor bias, float scale) -> (Tensor, Tensor, Tensor, Tensor)',
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = _backward_shape(grad, q, k, v, bias, scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    pair_bytes = bias.shape[1] * bias.shape[2] * q.element_size()
    step = max(1, _CACHE * torch.get_num_threads() // pair_bytes)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        for head in range(q.shape[1]):
            bias_sum = torch.zeros(bias.shape[1:], dtype=wide, device=q.device)
            for first in range(0, q.shape[0], step):
                here = (slice(first, first + step), head)
                parts = _backward_of_some(grad[here], q[here], k[here], v[here], bias[head], scale)
                for whole, part in zip(results[:3], parts, strict=False):
                    whole[here] = part
                bias_sum += parts[3].sum(0, dtype=wide)
            results[3][head] = bias_sum
    return results


def _backward_of_some(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for some windows of one head: (n, N, d), twice (n, M, d), and the logits' own, (n, N, M)."""
    weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    grad_v = torch.bmm(weights.transpose(1, 2), grad)
    of_weights = torch.bmm(grad, v.transpose(1, 2))
    of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    grad_q = torch.bmm(of_logits, k).mul_(scale)
    grad_k = torch.bmm(of_logits.transpose(1, 2), q).mul_(scale)
    return grad_q, grad_k, grad_v, of_logits


@_backward.register_fake
def _backward_shape(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor) -> Tensor:
        windows, heads, tokens, width = x.shape
        return x.new_empty(windows, tokens, heads, width).transpose(1, 2)

    return like(q), like(k), like(v), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.hat_plugin.recomputed_attention_backward(grad, *ctx.saved_tensors, ctx.scale)
    return (*found, None)


def _differentiate_twice(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Through the plain formula: rare, so memory is not minded."""
    with torch.enable_grad():
        inputs = grad, q, k, v, bias = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        first = torch.autograd.grad(
            plain_attention(q, k, v, bias, ctx.scale), (q, k, v, bias), grad_outputs=grad, create_graph=True
        )
    return (*torch.autograd.grad(first, inputs, grad_outputs=grads), None)


torch.library.register_autograd('hat_plugin::recomputed_attention', _differentiate, setup_context=_save)
torch.library.register_autograd('hat_plugin::recomputed_attention_backward', _differentiate_twice, setup_context=_save)
