"""The blocks of HAT: hybrid attention (HAB), and the residual group (RHAG) of these and overlapping cross-attention.

Source: "Activating More Pixels in Image Super-Resolution Transformer" (CVPR 2023), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hat_plugin.kernels.tile_blocks import BlockLayers
from hat_plugin.layers.attention import gather_bias, prefers_whole
from hat_plugin.layers.config import BlockConfig, WindowTables
from hat_plugin.layers.feed_forward import Mlp, add_feed_forward
from hat_plugin.layers.lean import through
from hat_plugin.layers.linear import add_linear, normed_linear
from hat_plugin.layers.local import CAB
from hat_plugin.layers.overlap import OCAB
from hat_plugin.layers.residual import DropPath, add_in_strips, like_convolution, residual_convolution
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.strips import Block, blocks_of, chunk_windows, enough, read_windows, use_strips, write_windows
from hat_plugin.layers.whole_block import block_layers, whole_block
from hat_plugin.layers.windows import shifted_regions


class HAB(nn.Module):
    """Hybrid attention block: attention within (shifted) windows beside a channel attention block, then an MLP.

    Args:
        config: sizes.
        shift_size: pixels by which windows are moved; 0 or half a window.
        drop_path: probability with which a sample's attention, and its MLP, is left out in training.
    """

    def __init__(self, config: BlockConfig, shift_size: int = 0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv_scale = config.conv_scale
        self.norm1 = config.norm_layer(config.dim)
        self.attn = WindowAttention(
            config.dim,
            config.window_size,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            qk_scale=config.qk_scale,
            attn_drop=config.attn_drop,
            proj_drop=config.drop,
        )
        self.conv_block = CAB(config.dim, config.compress_ratio, config.squeeze_factor)
        self.drop_path = DropPath(drop_path)
        self.norm2 = config.norm_layer(config.dim)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio), config.drop)

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        if use_strips(x, self):
            layers = block_layers(
                x, (self.norm1, self.norm2), self.attn.qkv, self.attn.proj, self.mlp, self.attn.window_size
            )
            if layers is not None:
                return self._by_one_kernel(x, tables, layers)
            whole = prefers_whole(x, self.attn.relative_position_bias_table)
            return self._whole(x, tables) if whole else self._in_strips(x, tables)
        qkv, compressed = through(x, self.norm1, self.attn.qkv, self.conv_block.first)
        features, weights = self.conv_block.expand(compressed)
        x = self._add_attention(x, qkv, tables, (features, weights * self.conv_scale))
        return add_feed_forward(x, self.norm2, self.mlp, self.drop_path)

    def _add_attention(self, x: Tensor, qkv: Tensor, tables: WindowTables, branch: tuple[Tensor, Tensor]) -> Tensor:
        """x + drop_path(attention) + branch[0] * branch[1], with gradients; qkv (B, H, W, 3 * C)."""
        shift = self.shift_size
        kept = None if self.training and self.attn.proj_drop.p else self.drop_path.draw(x)
        if kept is None:
            attended = self.attn.attended_pixels(qkv, tables.self_index, tables.masks, shift)
            return x + torch.addcmul(self.drop_path(self.attn.projected(attended)), *branch)
        attended = self.attn.attended_pixels(kept.of(qkv), tables.self_index, tables.masks, shift)
        if kept.samples is None:
            return add_linear(x, attended, self.attn.proj, branch, factor=kept.factor)
        x = x + branch[0] * branch[1]
        return kept.back(x, add_linear(kept.of(x), attended, self.attn.proj, factor=kept.factor))

    def _by_one_kernel(self, x: Tensor, tables: WindowTables, layers: BlockLayers) -> Tensor:
        """`forward` in inference: the convolution branch first, then one window after the other."""
        branch, weights = self.conv_block.in_strips(x, self.norm1)
        branch = branch.to(x.dtype).contiguous()
        added = branch, weights * self.conv_scale
        return whole_block(x, layers, self.attn, tables, self.shift_size, added, out=branch)

    def _whole(self, x: Tensor, tables: WindowTables) -> Tensor:
        """`forward` in inference, all windows at once."""
        qkv, y = normed_linear(x, self.norm1, self.attn.qkv)
        branch, weights = self.conv_block.in_strips(y)
        attended = self.attn.attended_pixels(qkv, tables.self_index, tables.masks, self.shift_size)
        y = add_linear(x, attended, self.attn.proj, (branch, weights * self.conv_scale))
        return add_feed_forward(y, self.norm2, self.mlp)

    def _in_strips(self, x: Tensor, tables: WindowTables) -> Tensor:
        """`forward` in inference: the convolution branch first, then all the rest a few windows at a time."""
        batch, height, width, _ = x.shape
        side, most = self.attn.window_size, chunk_windows(x, self.attn.window_size)
        branch, weights = self.conv_block.in_strips(x, self.norm1)
        weights = weights * self.conv_scale
        result = branch if branch.dtype == x.dtype else torch.empty_like(x)  # a part is read before it is written
        plain = gather_bias(self.attn.relative_position_bias_table, tables.self_index)
        for region in enough(shifted_regions(height // side, width // side, self.shift_size > 0)):
            bias = plain if region.mask is None else plain + tables.masks[region.mask]
            top, left = (n * side + self.shift_size for n in (region.top, region.left))
            for block in blocks_of(batch, region.rows, region.columns, side, most):
                block = block._replace(top=block.top + top, left=block.left + left)
                y = self._attended(x, block, bias, (read_windows(branch, block, side), weights[block.sample]))
                write_windows(result, block, add_feed_forward(y, self.norm2, self.mlp), side)
        return result

    def _attended(self, x: Tensor, block: Block, bias: Tensor, branch: tuple[Tensor, Tensor]) -> Tensor:
        """A block of x, (B, H, W, C), with its attention and the scaled branch added: windows (n, N, C)."""
        y = read_windows(x, block, self.attn.window_size)
        qkv, _ = normed_linear(y, self.norm1, self.attn.qkv)
        return add_linear(y, self.attn.attended_windows(qkv, bias), self.attn.proj, branch)


class AttenBlocks(nn.Module):
    """Hybrid attention blocks, every second one shifted by half a window, then one overlapping cross-attention block.

    Args:
        config: sizes.
        drop_path: one probability for each hybrid attention block.
        checkpointed: how many of the first blocks recompute their activations in the backward pass.
    """

    def __init__(self, config: BlockConfig, drop_path: Sequence[float], checkpointed: int = 0) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(
            HAB(config, shift_size=config.window_size // 2 if number % 2 else 0, drop_path=probability)
            for number, probability in enumerate(drop_path)
        )
        self.overlap_attn = OCAB(config)

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        for number, block in enumerate((*self.blocks, self.overlap_attn)):
            if number < self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, tables, use_reentrant=False)
            else:
                x = block(x, tables)
        return x


class RHAG(nn.Module):
    """Residual hybrid attention group.

    Args:
        config: sizes.
        drop_path: one probability for each hybrid attention block.
        checkpointed: how many of the first blocks recompute their activations in the backward pass.
        resi_connection: what stands before the residual addition, as in `residual_convolution`.
    """

    def __init__(
        self, config: BlockConfig, drop_path: Sequence[float], checkpointed: int = 0, resi_connection: str = '1conv'
    ) -> None:
        super().__init__()
        self.residual_group = AttenBlocks(config, drop_path, checkpointed)
        self.conv = residual_convolution(resi_connection, config.dim)

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        y = self.residual_group(x, tables)
        if use_strips(x, self):
            return add_in_strips(None, x, self.conv, lambda top, bottom: y[:, top:bottom])
        return x + self.conv(like_convolution(y, self.conv).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
