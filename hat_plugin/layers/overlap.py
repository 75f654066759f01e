"""Overlapping cross-attention (OCAB): a window sees what is around it.

Source: "Activating More Pixels in Image Super-Resolution Transformer" (CVPR 2023), section 3.2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.operands import Layer
from hat_plugin.kernels.tile_blocks import BlockLayers, window_block
from hat_plugin.kernels.window_attention import image_window_attention
from hat_plugin.layers.attention import (
    attention,
    gather_bias,
    image_backend,
    merge_heads,
    prefers_whole,
    split_heads,
    takes_image,
)
from hat_plugin.layers.config import BlockConfig, WindowTables
from hat_plugin.layers.feed_forward import Mlp, add_feed_forward
from hat_plugin.layers.lean import through
from hat_plugin.layers.linear import Linear, add_linear, is_plain_linear, linear, normed_linear
from hat_plugin.layers.strips import (
    Block,
    blocks_of,
    chunk_windows,
    enough,
    like_weights,
    map_rows,
    read_windows,
    use_strips,
    write_windows,
)
from hat_plugin.layers.whole_block import block_layers
from hat_plugin.layers.windows import overlapping_windows, window_partition, window_reverse, windows_of_padded


class OCAB(nn.Module):
    """Overlapping cross-attention block: a window's queries see keys and values from beyond its border, then an MLP.

    Args:
        config: sizes.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.overlap_size = config.overlap_size
        self.num_heads = config.num_heads
        self.scale = config.qk_scale or (config.dim // config.num_heads) ** -0.5
        rows = (config.window_size + config.overlap_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, config.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.norm1 = config.norm_layer(config.dim)
        self.qkv = Linear(config.dim, config.dim * 3, bias=config.qkv_bias)
        self.proj = Linear(config.dim, config.dim)
        self.norm2 = config.norm_layer(config.dim)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        if use_strips(x, self) and is_plain_linear(self.qkv):
            layers = block_layers(
                x, (self.norm1, self.norm2), self.qkv, self.proj, self.mlp, self.window_size, queries_alone=True
            )
            if layers is not None or not prefers_whole(x, self.relative_position_bias_table):
                return self._in_strips(x, tables, layers)
        (qkv,) = through(x, self.norm1, self.qkv)
        x = add_linear(x, self._attended(qkv, tables.overlap_index), self.proj)
        return add_feed_forward(x, self.norm2, self.mlp)

    def _in_strips(self, x: Tensor, tables: WindowTables, layers: BlockLayers | None) -> Tensor:
        """`forward` in inference: keys and values for a strip of window rows, then a few windows at a time.

        Args:
            layers: for windows to be worked on by one kernel, or None.
        """
        batch, height, width, _ = x.shape
        rows, columns = height // self.window_size, width // self.window_size
        bias = gather_bias(self.relative_position_bias_table, tables.overlap_index)
        result = torch.empty_like(x)
        for strip in blocks_of(
            batch, rows, columns, self.window_size, max(1, map_rows(x) // self.window_size) * columns
        ):
            self._fill(result, x, strip, bias, layers)
        return result

    def _fill(self, result: Tensor, x: Tensor, strip: Block, bias: Tensor, layers: BlockLayers | None) -> None:
        """Put a strip of the result, (B, H, W, C), in its place; all that it takes is free again afterwards."""
        side, margin = self.window_size, self.overlap_size - self.window_size  # of both sides
        most = max(1, chunk_windows(x, side) // 2)  # each brings keys and values of about twice its pixels
        kv = self._keys_and_values(x[strip.sample], strip.top, strip.top + strip.height)
        if layers is not None:
            geometry = Geometry(self.scale, self.num_heads, side, self.overlap_size, 0)
            own, out = (image[strip.sample, None, strip.top : strip.top + strip.height] for image in (x, result))
            window_block(own, layers, bias, geometry, keys_and_values=kv[None], out=out)
            return
        for part in blocks_of(1, strip.height // side, strip.width // side, side, most):
            seen = kv[part.top : part.top + part.height + margin, part.left : part.left + part.width + margin]
            block = part._replace(sample=strip.sample, top=part.top + strip.top)
            y = self._attended_block(read_windows(x, block, side), seen, bias)
            write_windows(result, block, add_feed_forward(y, self.norm2, self.mlp), side)

    def _attended_block(self, x: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        """Windows (n, N, C) with attention added to what is around them, keys and values (h, w, 2 * C)."""
        channels = x.shape[-1]
        query_bias = None if self.qkv.bias is None else self.qkv.bias[:channels]
        tokens = like_weights(self.norm1(x), self.qkv)
        (q,) = split_heads(linear(tokens, self.qkv.weight[:channels], query_bias), 1, self.num_heads)
        k, v = split_heads(windows_of_padded(kv[None], self.window_size, self.overlap_size), 2, self.num_heads)
        return add_linear(x, merge_heads(attention(q, k, v, bias, scale=self.scale)), self.proj)

    def _keys_and_values(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Keys and values of the rows [top, bottom) of an image (H, W, C) and the margin around, zeros outside it.

        Returns:
            (bottom - top + 2 * margin, W + 2 * margin, 2 * C).
        """
        height, width, channels = x.shape
        margin = (self.overlap_size - self.window_size) // 2
        weight = self.qkv.weight[channels:]
        bias = None if self.qkv.bias is None else self.qkv.bias[channels:]
        step = max(1, chunk_windows(x, self.window_size) * self.window_size**2 // width)
        kv: Tensor | None = None
        for row in enough(range(max(0, top - margin), min(height, bottom + margin), step)):
            end = min(row + step, height, bottom + margin)
            part = normed_linear(x[row:end], self.norm1, Layer(weight, bias))[0]
            if kv is None:
                kv = part.new_zeros(bottom - top + 2 * margin, width + 2 * margin, 2 * channels)
            kv[row - top + margin : end - top + margin, margin : margin + width] = part
        assert kv is not None
        return kv

    def _attended(self, qkv: Tensor, index: Tensor) -> Tensor:
        """Attention before the projection: (B, H, W, 3 * C) to (B, H, W, C)."""
        _, height, width, channels = qkv.shape
        channels //= 3
        table = self.relative_position_bias_table
        attend = image_backend(qkv, table)
        if attend is not None:
            sizes = {'window_size': self.window_size, 'overlap_size': self.overlap_size}
            return attend(*qkv.chunk(3, dim=-1), table, scale=self.scale, num_heads=self.num_heads, **sizes)
        bias = gather_bias(table, index)
        if takes_image(qkv, 0.0):
            return image_window_attention(
                qkv,
                bias,
                scale=self.scale,
                num_heads=self.num_heads,
                window_size=self.window_size,
                overlap_size=self.overlap_size,
            )
        q, kv = qkv.split([channels, 2 * channels], dim=-1)
        (q,) = split_heads(window_partition(q, self.window_size), 1, self.num_heads)
        k, v = split_heads(overlapping_windows(kv, self.window_size, self.overlap_size), 2, self.num_heads)
        windows = merge_heads(attention(q, k, v, bias, scale=self.scale))
        return window_reverse(windows, self.window_size, height, width)
