"""Self-attention within windows, regular and shifted: projections around `hat_plugin.layers.attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hat_plugin.kernels.window_attention import image_window_attention
from hat_plugin.layers.attention import (
    attention,
    gather_bias,
    image_backend,
    merge_heads,
    split_heads,
    takes_image,
)
from hat_plugin.layers.linear import Linear
from hat_plugin.layers.strips import like_weights
from hat_plugin.layers.windows import shifted_regions, window_partition, window_reverse


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
        return self.projected(self.attended(x, index, masks, shift_size))

    def projected(self, attended: Tensor) -> Tensor:
        """What follows attention; (..., C) to the same shape."""
        return self.proj_drop(self.proj(attended))

    def attended(self, x: Tensor, index: Tensor, masks: Tensor | None = None, shift_size: int = 0) -> Tensor:
        """`forward` before the projection; the same arguments."""
        return self.attended_pixels(self.qkv(like_weights(x, self.qkv)), index, masks, shift_size)

    def attended_pixels(self, qkv: Tensor, index: Tensor, masks: Tensor | None = None, shift_size: int = 0) -> Tensor:
        """`attended` from queries, keys and values, (B, H, W, 3 * C)."""
        attend = image_backend(qkv, self.relative_position_bias_table, self._dropout)
        if attend is not None:
            sizes = {'num_heads': self.num_heads, 'window_size': self.window_size, 'shift_size': shift_size}
            return attend(*qkv.chunk(3, dim=-1), self.relative_position_bias_table, scale=self.scale, **sizes)
        if shift_size and masks is None:
            raise ValueError(f'shift_size {shift_size} needs masks: give shift_masks({self.window_size}, {shift_size})')
        bias = gather_bias(self.relative_position_bias_table, index)
        if takes_image(qkv, self._dropout):
            return image_window_attention(
                qkv,
                bias,
                scale=self.scale,
                num_heads=self.num_heads,
                window_size=self.window_size,
                shift_size=shift_size,
                masks=masks,
            )
        return self._attend_regions(qkv, bias, masks, shift_size)

    def attended_windows(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """`attended_pixels` of windows cut out, (windows, N, 3 * C), a mask being part of the bias (heads, N, N)."""
        return self._attend(qkv, bias, None)

    @property
    def _dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

    def _attend_regions(self, qkv: Tensor, bias: Tensor, masks: Tensor | None, shift_size: int) -> Tensor:
        """Attention before the projection, windows with one mask at a time: (B, H, W, 3 * C) to (B, H, W, C)."""
        side = self.window_size
        if shift_size:
            qkv = torch.roll(qkv, shifts=(-shift_size, -shift_size), dims=(1, 2))
        bands: list[list[Tensor]] = []
        for top, left, rows, columns, mask in shifted_regions(
            qkv.shape[1] // side, qkv.shape[2] // side, shift_size > 0
        ):
            bands += [[]] if left == 0 else []
            part = qkv[:, top * side : (top + rows) * side, left * side : (left + columns) * side]
            windows = self._attend(
                window_partition(part, side), bias, None if mask is None or masks is None else masks[mask]
            )
            bands[-1].append(window_reverse(windows, side, rows * side, columns * side, qkv.shape[0]))
        x = torch.cat([torch.cat(band, dim=2) for band in bands], dim=1) if shift_size else bands[0][0]
        return torch.roll(x, shifts=(shift_size, shift_size), dims=(1, 2)) if shift_size else x

    def _attend(self, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within windows of one mask, before the projection: (windows, N, 3 * C) to (windows, N, C)."""
        q, k, v = split_heads(qkv, 3, self.num_heads)
        return merge_heads(attention(q, k, v, bias, scale=self.scale, mask=mask, dropout=self._dropout))
