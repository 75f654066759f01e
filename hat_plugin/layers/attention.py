"""Multi-head attention within windows: the fused paths, the plain path that tests compare them with, the bias between.

`attention` is the one door. Whoever adds a kernel adds a function to `BACKENDS` and, where it was measured ahead, to
`best_backend`. A backend takes ``(q, k, v, bias, scale, dropout)``: q is (windows, heads, N, d), k and v are (windows,
heads, M, d), all three possibly strided views of one tensor whose last stride is 1; bias is (heads, N, M) in q's dtype,
the mask of the region already added; it returns (windows, heads, N, d) in q's dtype, best laid out as (windows, N,
heads, d), and gives gradients for all four tensors where they are asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels.window_attention import image_window_attention, supports, supports_image, window_attention
from hat_plugin.layers.linear import Linear
from hat_plugin.layers.recompute import plain_attention, recomputed_attention
from hat_plugin.layers.strips import like_weights
from hat_plugin.layers.windows import shifted_regions, window_partition, window_reverse


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
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout, scale=scale)


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
    half the memory of the plain path and, within the noise of the measurement, its time. On CUDA SDPA stays: nothing
    was measured there.
    """
    learning = bias.requires_grad and torch.is_grad_enabled()
    if q.is_cuda or dropout:
        return 'sdpa'
    return 'recompute' if learning else 'cpp'


def automatic_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """By `best_backend`."""
    return BACKENDS[best_backend(q, bias, dropout)](q, k, v, bias, scale, dropout)


Backend = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]
BACKENDS: dict[str, Backend] = {
    'auto': automatic_attention,
    'sdpa': sdpa_attention,
    'cpp': cpp_attention,
    'recompute': recompute_attention,
    'reference': reference_attention,
}


def _named_backend(name: str) -> str:
    """The name itself, if there is such a backend."""
    if name not in BACKENDS:
        raise ValueError(f"attention backend '{name}' is unknown: set HAT_ATTENTION to one of {', '.join(BACKENDS)}")
    return name


_backend = _named_backend(os.environ.get('HAT_ATTENTION', 'auto'))


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Run all attention of this process through one backend: ``with attention_backend('reference'): net(x)``.

    The environment variable HAT_ATTENTION, read at import, sets the one that holds outside.

    Args:
        name: a key of `BACKENDS`.

    Raises:
        ValueError: there is no such backend; the one in use stays.
    """
    global _backend
    before, _backend = _backend, _named_backend(name)
    try:
        yield
    finally:
        _backend = before


def takes_image(qkv: Tensor, dropout: float) -> bool:
    """Whether `image_window_attention` is the kernel to take, which reads windows out of an image (B, H, W, 3 * C).

    On the CPU it took 0.6 of the time of windows that are cut out and attended to by the fused kernel, and in the
    backward pass 0.4 (fp32) or less (bf16) of that of `recomputed_attention`.
    """
    return _backend in ('auto', 'cpp') and not dropout and supports_image(qkv)


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
    return BACKENDS[_backend](q, k, v, bias, scale, dropout)


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """The bias of each pair of tokens.

    It is gathered anew in every pass: that takes under a hundredth of the pass, while keeping it would take 80 MB
    for HAT and would go stale when weights change behind autograd's back, as BasicSR's EMA changes them.

    Args:
        table: (rows, heads), learnable.
        index: (N, M), int64, in [0, rows).

    Returns:
        (heads, N, M), contiguous, in the table's dtype.
    """
    by_head = table.t().contiguous()
    if torch.is_grad_enabled() and table.requires_grad:
        bias = by_head[:, index.flatten()]  # its gradient is summed in a fixed order, index_select's is not on a GPU
    else:
        bias = by_head.index_select(1, index.flatten())
    return bias.unflatten(1, index.shape)


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


class WindowAttention(nn.Module):
    """Self-attention within windows, shifted or not, with a learnable bias by relative position: (S)W-MSA.

    Args:
        dim: number of channels.
        window_size: side of a window in pixels.
        num_heads: number of heads; divides dim.
        qkv_bias: whether queries, keys and values have a learnable bias.
        qk_scale: factor of the products; None for (dim / num_heads) ** -0.5.
        attn_drop: probability with which an attention weight is left out in training.
        proj_drop: probability with which an output is left out in training.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, index: Tensor, masks: Tensor | None = None, shift_size: int = 0) -> Tensor:
        """Attend within each window.

        Args:
            x: (B, H, W, C); H and W are multiples of window_size.
            index: `relative_position_index`, (N, N).
            masks: `shift_masks`, (3, N, N); needed where shift_size is not 0.
            shift_size: pixels by which the windows are moved down and right.

        Returns:
            (B, H, W, C).
        """
        if shift_size and masks is None:
            raise ValueError(f'shift_size {shift_size} needs masks: give shift_masks({self.window_size}, {shift_size})')
        bias = gather_bias(self.relative_position_bias_table, index)
        qkv = self.qkv(like_weights(x, self.qkv))
        if takes_image(qkv, self._dropout):
            x = image_window_attention(
                qkv,
                bias,
                scale=self.scale,
                num_heads=self.num_heads,
                window_size=self.window_size,
                shift_size=shift_size,
                masks=masks,
            )
        else:
            x = self._attend_regions(qkv, bias, masks, shift_size)
        return self.proj_drop(self.proj(x))

    def attend_windows(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Attend within each window, a mask being part of the bias (heads, N, N): (windows, N, C) to the same shape."""
        qkv = self.qkv(like_weights(windows, self.qkv))
        return self.proj_drop(self.proj(self._attend(qkv, bias, None)))

    @property
    def _dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

    def _attend_regions(self, qkv: Tensor, bias: Tensor, masks: Tensor | None, shift_size: int) -> Tensor:
        """Attention before the projection, windows with one mask at a time: (B, H, W, 3 * C) to (B, H, W, C)."""
        side = self.window_size
        if shift_size:
            qkv = torch.roll(qkv, shifts=(-shift_size, -shift_size), dims=(1, 2))
        bands: dict[int, list[Tensor]] = {}
        for top, left, rows, columns, mask in shifted_regions(
            qkv.shape[1] // side, qkv.shape[2] // side, shift_size > 0
        ):
            part = qkv[:, top * side : (top + rows) * side, left * side : (left + columns) * side]
            windows = self._attend(
                window_partition(part, side), bias, None if mask is None or masks is None else masks[mask]
            )
            bands.setdefault(top, []).append(window_reverse(windows, side, rows * side, columns * side))
        x = torch.cat([torch.cat(band, dim=2) for band in bands.values()], dim=1) if shift_size else bands[0][0]
        return torch.roll(x, shifts=(shift_size, shift_size), dims=(1, 2)) if shift_size else x

    def _attend(self, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within windows of one mask, before the projection: (windows, N, 3 * C) to (windows, N, C)."""
        q, k, v = split_heads(qkv, 3, self.num_heads)
        return merge_heads(attention(q, k, v, bias, scale=self.scale, mask=mask, dropout=self._dropout))
