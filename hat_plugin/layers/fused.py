"""Attention by torch's own fused kernels, given what they need: `scaled_dot_product_attention` and FlexAttention."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float = 0.0, multiple: int = 1
) -> Tensor:
    """`scaled_dot_product_attention` with the head's width filled up with zeros to a multiple.

    CUDA's fused kernels take a bias only with widths that are multiples of 8; HAT's is 30, and torch would fall back to
    its plain path without a word. Zeros change no product, and what they make is cut off.

    Args:
        q: (windows, heads, N, d).
        k: (windows, heads, M, d).
        v: (windows, heads, M, d).
        bias: (heads, N, M), in q's dtype.
        scale: factor of the products.
        dropout: probability with which an attention weight is left out.
        multiple: of the width; 1 leaves it.

    Returns:
        (windows, heads, N, d).
    """
    width = q.shape[-1]
    if width % multiple:
        q, k, v = (F.pad(x, (0, -width % multiple)) for x in (q, k, v))
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout, scale=scale)
    return result[..., :width]


@functools.lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention)


def flex_bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """FlexAttention with the bias as a tensor that its score function reads, whose gradient the kernel sums.

    On CUDA it is compiled (the first call of a shape takes a while); elsewhere it computes step by step, without
    gradients. Arguments and result as in `fused_attention`.
    """

    def biased(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[head, query, key]

    attend: Any = _compiled() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    result: Tensor = attend(q, k, v, score_mod=biased, scale=scale)
    return result
