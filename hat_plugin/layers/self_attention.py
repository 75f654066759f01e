"""Self-attention within windows, regular and shifted: projections around `hat_plugin.layers.attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hat_plugin.layers.attention import (
    ImageBackend,
    attention,
    gather_bias,
    image_backend,
    merge_heads,
    split_heads,
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
        attend = self.image_backend(x)
        if attend is not None:
            return self._attend_image(x, attend, shift_size)
        bias = gather_bias(self.relative_position_bias_table, index)
        if shift_size == 0:
            return self._attend_region(x, bias, None)
        if masks is None:
            raise ValueError(f'shift_size {shift_size} needs masks: give shift_masks({self.window_size}, {shift_size})')
        side = self.window_size
        x = torch.roll(x, shifts=(-shift_size, -shift_size), dims=(1, 2))
        bands: dict[int, list[Tensor]] = {}
        for top, left, rows, columns, mask in shifted_regions(x.shape[1] // side, x.shape[2] // side):
            part = x[:, top * side : (top + rows) * side, left * side : (left + columns) * side]
            attended = self._attend_region(part, bias, None if mask is None else masks[mask])
            bands.setdefault(top, []).append(attended)
        x = torch.cat([torch.cat(band, dim=2) for band in bands.values()], dim=1)
        return torch.roll(x, shifts=(shift_size, shift_size), dims=(1, 2))

    def image_backend(self, x: Tensor) -> ImageBackend | None:
        """What attends within the windows of a whole image, if the backend in use is one that does."""
        return image_backend(x, self.relative_position_bias_table, self._dropout)

    @property
    def _dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

    def _attend_image(self, x: Tensor, attend: ImageBackend, shift_size: int) -> Tensor:
        """Attend within all windows where they are: (B, H, W, C) to the same shape."""
        q, k, v = self.qkv(like_weights(x, self.qkv)).chunk(3, dim=-1)
        sizes = {'num_heads': self.num_heads, 'window_size': self.window_size, 'shift_size': shift_size}
        attended = attend(q, k, v, self.relative_position_bias_table, scale=self.scale, **sizes)
        return self.proj_drop(self.proj(attended))

    def attend_windows(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Attend within each window, a mask being part of the bias (heads, N, N): (windows, N, C) to the same shape."""
        return self.proj_drop(self.proj(self._attend_windows(windows, bias, None)))

    def _attend_region(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows that share one mask: (B, H, W, C) to the same shape."""
        _, height, width, _ = x.shape
        windows = self._attend_windows(window_partition(x, self.window_size), bias, mask)
        return window_reverse(self.proj_drop(self.proj(windows)), self.window_size, height, width)

    def _attend_windows(self, windows: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window, before the projection: (windows, N, C) to the same shape."""
        q, k, v = split_heads(self.qkv(like_weights(windows, self.qkv)), 3, self.num_heads)
        return merge_heads(attention(q, k, v, bias, scale=self.scale, mask=mask, dropout=self._dropout))
