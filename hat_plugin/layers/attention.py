"""Multi-head attention within windows: the fused paths, the plain path that tests compare them with, the bias between.

`attention` is the one door. Whoever adds a kernel adds a function to `BACKENDS` and, where it was measured ahead, to
`best_backend`. What takes whole images and needs no windows cut is in `IMAGE_BACKENDS` besides, and `image_backend` is
its door; that of the C++ kernel is `takes_image`.

A backend takes ``(q, k, v, bias, scale, dropout)``: q is (windows, heads, N, d), k and v are (windows, heads, M, d),
all three possibly strided views of one tensor whose last stride is 1; bias is (heads, N, M) in q's dtype, the mask of
the region already added; it returns (windows, heads, N, d) in q's dtype, best laid out as (windows, N, heads, d), and
gives gradients for all four tensors where they are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hat_plugin.kernels.operands import has_tangents, is_exported
from hat_plugin.kernels.triton_attention import triton_attention
from hat_plugin.kernels.triton_launch import require_triton
from hat_plugin.kernels.triton_launch import takes as triton_takes
from hat_plugin.kernels.window_attention import gathered_bias, supports, supports_image, window_attention
from hat_plugin.layers.fused import flex_bias_attention, fused_attention
from hat_plugin.layers.recompute import plain_attention, recomputed_attention
from hat_plugin.layers.strips import is_one_chunk

logger = logging.getLogger(__name__)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """Attention as the paper writes it, each step a tensor of its own."""
    if not dropout:
        return plain_attention(q, k, v, bias, scale)
    logits = (q * scale) @ k.transpose(-2, -1) + bias
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """Attention by torch's fused kernels.

    On the CPU the fused kernel has no gradient for the bias; torch would then take a slower plain path than ours.
    """
    if bias.requires_grad and not bias.is_cuda and torch.is_grad_enabled():
        return reference_attention(q, k, v, bias, scale, dropout)
    return fused_attention(q, k, v, bias, scale, dropout, multiple=8 if q.is_cuda else 1)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """FlexAttention; SDPA where it has nothing to offer: dropout, 'meta', gradients on the CPU, thin heads on a GPU."""
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, bias))
    if dropout or q.is_meta or (learning and not q.is_cuda) or (q.is_cuda and min(q.shape[-1], v.shape[-1]) < 16):
        return sdpa_attention(q, k, v, bias, scale, dropout)
    return flex_bias_attention(q, k, v, bias, scale)


def recompute_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """`recomputed_attention`; with dropout, whose pattern would have to be kept, the plain path."""
    if dropout:
        return reference_attention(q, k, v, bias, scale, dropout)
    return recomputed_attention(q, k, v, bias, scale)


def cpp_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """The C++ kernel of `hat_plugin.kernels`, where it was built and no gradient is asked for; else SDPA."""
    if dropout or not supports(q, k, v, bias):
        return sdpa_attention(q, k, v, bias, scale, dropout)
    return window_attention(q, k, v, bias, scale)


def best_backend(q: Tensor, bias: Tensor, dropout: float) -> str:
    """The backend that was measured ahead for such operands; what 'auto' means.

    For inference on the CPU the C++ kernel took 0.4 to 0.8 of SDPA's time; where it was not built, 'cpp' is SDPA.
    Where the bias learns on the CPU and the kernel was not built (else `takes_image` is true), recomputing takes about
    half the memory of the plain path and, within the noise of the measurement, its time. On an H100 the Triton kernels
    took a quarter of SDPA's time, cutting windows included (bf16, 1024x1024 pixels), FlexAttention four fifths.
    """
    learning = bias.requires_grad and torch.is_grad_enabled()
    if is_exported():
        return 'sdpa'
    if has_tangents():  # torch's fused kernels have none
        return 'reference'
    if q.is_cuda and not dropout and triton_takes(q, bias):
        return 'triton'
    if q.is_cuda or dropout:
        return 'sdpa'
    return 'recompute' if learning else 'cpp'


Backend = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]
BACKENDS: dict[str, Backend] = {
    'sdpa': sdpa_attention,
    'cpp': cpp_attention,
    'flex': flex_attention,
    'triton': sdpa_attention,  # for what comes in windows after all: with dropout, on 'meta'
    'recompute': recompute_attention,
    'reference': reference_attention,
}

ImageBackend = Callable[..., Tensor]  # the arguments and the result of `triton_attention`
IMAGE_BACKENDS: dict[str, ImageBackend] = {'triton': triton_attention}


def _named_backend(name: str) -> str:
    """The name itself, if there is such a backend and what it needs is installed."""
    names = ('auto', *BACKENDS)
    if name not in names:
        raise ValueError(f"attention backend '{name}' is unknown: set HAT_ATTENTION to one of {', '.join(names)}")
    if name == 'triton':
        require_triton()
    return name


_backend = _named_backend(os.environ.get('HAT_ATTENTION', 'auto'))


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Run all attention of this process through one backend: ``with attention_backend('reference'): net(x)``.

    The environment variable HAT_ATTENTION, read at import, sets the one that holds outside.

    Args:
        name: a key of `BACKENDS`, or 'auto' for what `best_backend` says.

    Raises:
        ValueError: there is no such backend; the one in use stays.
        TritonError: 'triton' is not installed; the one in use stays.
    """
    global _backend
    before, _backend = _backend, _named_backend(name)
    try:
        yield
    finally:
        _backend = before


def _announce(name: str, x: Tensor) -> None:
    """Say once what attention of such tensors runs through."""
    if not (torch.compiler.is_compiling() or x.is_meta):
        _log(name, x.device.type)


@functools.cache
def _log(name: str, device: str) -> None:
    logger.info('attention on %s runs through %s (HAT_ATTENTION=%s)', device, name, _backend)


def _chosen(q: Tensor, bias: Tensor, dropout: float) -> str:
    """The name of the backend for such operands."""
    return best_backend(q, bias, dropout) if _backend == 'auto' else _backend


def image_backend(x: Tensor, table: Tensor, dropout: float = 0.0) -> ImageBackend | None:
    """What attends within the windows of a whole image, if the backend in use is one that does.

    Args:
        x: the image, (B, H, W, C); its device, and 'meta' has none.
        table: the bias, (rows, heads).
        dropout: probability with which an attention weight is left out; none of them has dropout.

    Returns:
        A function with the arguments of `triton_attention`, or None: cut windows and call `attention`.
    """
    name = _chosen(x, table, dropout)
    if dropout or x.is_meta or name not in IMAGE_BACKENDS:
        return None
    _announce(name, x)
    return IMAGE_BACKENDS[name]


def takes_image(qkv: Tensor, dropout: float) -> bool:
    """Whether `image_window_attention` is the kernel to take, which reads windows out of an image (B, H, W, 3 * C).

    On the CPU it took 0.6 of the time of windows that are cut out and attended to by the fused kernel, and in the
    backward pass 0.4 (fp32) or less (bf16) of that of `recomputed_attention`.
    """
    taken = _backend in ('auto', 'cpp') and not dropout and supports_image(qkv)
    if taken:
        _announce('cpp', qkv)
    return taken


def prefers_whole(x: Tensor, table: Tensor) -> bool:
    """Whether inference takes an image (B, H, W, C) whole: a kernel reads windows out of it, and strips save nothing.

    On the CPU a HAT took 0.9 of the time of strips for 64x64 pixels, which are cut at the shift's seams.
    """
    return image_backend(x, table) is not None or (takes_image(x, 0.0) and is_one_chunk(x))


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T * scale + bias + mask) v, for each window and head.

    Args:
        q: queries, (windows, heads, N, d); may be a strided view, like k and v.
        k: keys, (windows, heads, M, d).
        v: values, (windows, heads, M, d).
        bias: relative position bias, (heads, N, M).
        scale: factor of the products.
        mask: (N, M), added to the bias of every head, or None.
        dropout: probability with which an attention weight is left out.

    Returns:
        (windows, heads, N, d), in q's dtype.
    """
    if mask is not None:
        bias = bias + mask
    bias = bias.to(q.dtype)
    name = _chosen(q, bias, dropout)
    _announce(name, q)
    return BACKENDS[name](q, k, v, bias, scale, dropout)


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """The bias of each pair of tokens.

    It is gathered anew in every pass: that takes one to three hundredths of the pass, while keeping it would take
    80 MB for HAT and would go stale when weights change behind autograd's back, as BasicSR's EMA changes them.

    Args:
        table: (rows, heads), learnable.
        index: (N, M), int64, in [0, rows).

    Returns:
        (heads, N, M), contiguous, in the table's dtype.
    """
    gathered = gathered_bias(table, index)
    if gathered is not None:
        return gathered
    half = table.device.type == 'cpu' and table.dtype in (torch.bfloat16, torch.float16)  # four times as slow there
    by_head = (table.float() if half else table).t().contiguous()
    if table.is_cuda and torch.is_grad_enabled() and table.requires_grad:
        # Its gradient has a fixed order, index_select's has none on a GPU; on a CPU it takes eight times as long.
        bias = by_head[:, index.flatten()]
    else:
        bias = by_head.index_select(1, index.flatten())
    return bias.to(table.dtype).unflatten(1, index.shape)


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views, none copied, of what one linear layer made for several parts.

    Args:
        x: (windows, N, parts * C).
        parts: 3 for queries, keys and values.
        num_heads: number of heads, d = C / num_heads channels each.

    Returns:
        `parts` tensors of (windows, heads, N, d).
    """
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """(windows, heads, N, d) to (windows, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)
