"""The blocks of a U-Net of hybrid attention, window attention beside local enhancement, and its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hat_plugin.layers.config import BlockConfig, WindowTables
from hat_plugin.layers.feed_forward import GatedFeedForward, Mlp, add_feed_forward
from hat_plugin.layers.fusion import FUSIONS, AddFusion, both, fusion
from hat_plugin.layers.lean import through
from hat_plugin.layers.linear import Linear
from hat_plugin.layers.local import LocalEnhancement
from hat_plugin.layers.overlap import OCAB
from hat_plugin.layers.resample import downsampling, upsampling
from hat_plugin.layers.residual import DropPath
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.strips import flat_steps, like_weights, use_strips
from hat_plugin.layers.whole_block import block_layers, whole_block

ARRANGEMENTS = ('parallel', 'sequential')
FEED_FORWARDS = ('mlp', 'gated')
SKIPS = ('concat', 'add')
_ITSELF = nn.Identity()


@dataclass(frozen=True)
class HybridOptions:
    """What all blocks of a U-Net have in common, whatever their level.

    Attributes:
        local: whether there is a local enhancement module.
        arrangement: 'parallel': it sees what attention sees; 'sequential': it sees what attention has made.
        fusion: 'add', 'concat' or 'gate'; how the two become one. In a sequence they are added one after the other.
        compress_ratio, norm, squeeze_factor: of `LocalEnhancement`.
        feed_forward: 'mlp' or 'gated'.
        shift: whether every second block's windows are moved by half a window.
        skip: how an encoder level comes into its decoder level: 'concat' (and a linear layer) or 'add'.

    Raises:
        ValueError: an unknown name, or options that do not go together.
    """

    local: bool = True
    arrangement: str = 'parallel'
    fusion: str = 'add'
    compress_ratio: int = 2
    norm: str = 'none'
    squeeze_factor: int = 0
    feed_forward: str = 'mlp'
    shift: bool = True
    skip: str = 'concat'

    def __post_init__(self) -> None:
        choices = {
            'arrangement': (self.arrangement, ARRANGEMENTS),
            'fusion': (self.fusion, FUSIONS),
            'feed_forward': (self.feed_forward, FEED_FORWARDS),
            'skip': (self.skip, SKIPS),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name} '{value}' is unknown: give one of {', '.join(known)}")
        if self.arrangement == 'sequential' and self.fusion != 'add':
            raise ValueError(
                f"fusion '{self.fusion}' needs two branches side by side, but arrangement is 'sequential': "
                "give fusion 'add', or arrangement 'parallel'"
            )
        changed = [
            name
            for name, value in (('arrangement', self.arrangement), ('fusion', self.fusion))
            if value != getattr(HybridOptions, name)
        ]
        if not self.local and changed:
            raise ValueError(
                f'local_enhancement false leaves attention alone, for which {" and ".join(changed)} cannot be given: '
                f'leave {"it" if len(changed) == 1 else "them"} out'
            )


class HybridBlock(nn.Module):
    """Attention within (shifted) windows and local enhancement, then a feed-forward network; a residual on each.

    Args:
        config: sizes.
        options: what it is made of.
        shift_size: pixels by which windows are moved; 0 or half a window.
        drop_path: probability with which a sample's branches are left out in training.
    """

    def __init__(
        self, config: BlockConfig, options: HybridOptions, shift_size: int = 0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.parallel = options.arrangement == 'parallel'
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.norm1 = config.norm_layer(dim)
        self.attn = WindowAttention(
            dim,
            config.window_size,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            qk_scale=config.qk_scale,
            attn_drop=config.attn_drop,
            proj_drop=config.drop,
        )
        self.local: LocalEnhancement | None = None
        if options.local:
            self.local = LocalEnhancement(dim, options.compress_ratio, options.norm, options.squeeze_factor)
            self.fusion = fusion(options.fusion, dim)
        self.norm2 = config.norm_layer(dim)
        gated = options.feed_forward == 'gated'
        self.mlp = GatedFeedForward(dim, hidden, config.drop) if gated else Mlp(dim, hidden, config.drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        added = self.local is None or (self.parallel and isinstance(self.fusion, AddFusion))
        if added and use_strips(x, self):
            norms, attn = (self.norm1, self.norm2), self.attn
            layers = block_layers(x, norms, attn.qkv, attn.proj, self.mlp, attn.window_size)
            if layers is not None:
                return whole_block(x, layers, attn, tables, self.shift_size, self._branch(x))
        if self.local is not None and self.parallel:
            qkv, narrow, y = through(x, self.norm1, self.attn.qkv, self.local.conv, _ITSELF)
        else:
            (qkv,) = through(x, self.norm1, self.attn.qkv)
        mixed = self.attn.projected(self.attn.attended_pixels(qkv, tables.self_index, tables.masks, self.shift_size))
        if self.local is not None:
            mixed = self.fusion(mixed, self.local.widen(narrow, y)) if self.parallel else self.local(mixed)
        x = x + self.drop_path(mixed)
        return add_feed_forward(x, self.norm2, self.mlp, self.drop_path)

    def _branch(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What local enhancement adds to attention's result, and the factor of each channel."""
        if self.local is None:
            return None
        return self.local(self.norm1(x)).to(x.dtype), x.new_ones(x.shape[-1])


class HybridLevel(nn.Module):
    """Hybrid blocks at one size, every second one shifted, and perhaps an overlapping cross-attention block.

    Args:
        config: sizes.
        options: what the blocks are made of.
        drop_path: one probability for each block.
        overlap: whether an `OCAB` closes the level.
        checkpointed: how many of the first blocks recompute their activations in the backward pass.
    """

    def __init__(
        self,
        config: BlockConfig,
        options: HybridOptions,
        drop_path: Sequence[float],
        overlap: bool = False,
        checkpointed: int = 0,
    ) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        shift = config.window_size // 2 if options.shift else 0
        self.blocks = nn.ModuleList(
            HybridBlock(config, options, shift_size=shift if number % 2 else 0, drop_path=probability)
            for number, probability in enumerate(drop_path)
        )
        if overlap:
            self.blocks.append(OCAB(config))

    def forward(self, x: Tensor, tables: WindowTables) -> Tensor:
        """(B, H, W, C) to the same shape; H and W are multiples of the window."""
        for number, block in enumerate(self.blocks):
            if number < self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, tables, use_reentrant=False)
            else:
                x = block(x, tables)
        return x


class LevelDown(nn.Module):
    """From one level to the next deeper.

    Args:
        name: of `downsampling`.
        dim: number of channels that come in; twice as many come out.
    """

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.body = downsampling(name, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H / 2, W / 2, 2 * dim)."""
        return _through(self.body, x)


class LevelUp(nn.Module):
    """From one level to the next higher, where what the encoder made at that level joins.

    Args:
        name: of `upsampling`.
        skip: 'concat' or 'add'.
        dim: number of channels that come out; twice as many come in.
    """

    def __init__(self, name: str, skip: str, dim: int) -> None:
        super().__init__()
        self.body = upsampling(name, dim)
        self.merge = Linear(2 * dim, dim) if skip == 'concat' else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, H, W, 2 * dim) and (B, 2 * H, 2 * W, dim) to the shape of the second."""
        x = _through(self.body, x)
        return x + skip if self.merge is None else self.merge(both(x, skip, self.merge))


def _through(body: nn.Module, x: Tensor) -> Tensor:
    """Convolutions over (B, H, W, C); the permuted view is channels_last, so nothing is copied."""
    x = x.permute(0, 3, 1, 2)
    for step in flat_steps([body]):
        x = step(like_weights(x, step))
    return x.permute(0, 2, 3, 1)
