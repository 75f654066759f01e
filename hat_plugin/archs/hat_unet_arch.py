"""HATUNet, hybrid attention on several scales: an encoder, a bottleneck and a decoder with skips, for restoration.

Its blocks put window self-attention, as HAT has it, beside a convolutional local enhancement module. The network, its
sizes and their names are this plugin's own; no weights of it were published.

Source: U-Net (MICCAI 2015) for the levels; Uformer and Restormer (CVPR 2022) for transformers on them; HAT (CVPR 2023)
for attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.layers.config import BlockConfig, WindowTables, check_counts, checkpointed_blocks, drop_paths
from hat_plugin.layers.embedding import pad_to_multiple
from hat_plugin.layers.resample import reconstruction
from hat_plugin.layers.strips import apply_in_strips, flat_steps, like_weights, use_strips
from hat_plugin.layers.unet import HybridLevel, HybridOptions, LevelDown, LevelUp
from hat_plugin.layers.windows import overlapping_position_index, relative_position_index, shift_masks


class HATUNet(nn.Module):
    """Multi-scale hybrid attention network for denoising, deblurring, artefact removal and super-resolution.

    A level has twice the channels and half the sides of the one above it. The output is the input (enlarged
    bicubically where upscale is above 1) plus what the network makes; untrained, that is zero.

    Args:
        in_chans: channels of the image: 3 (RGB), 1 (gray) or more.
        embed_dim: channels of the first level; a multiple of each of num_heads at its level.
        depths: number of hybrid blocks of each level; the last is the bottleneck, the others serve encoder and decoder.
        num_heads: number of heads of each level.
        refinement_depth: hybrid blocks behind the decoder, at the first level's size; 0 or more.
        window_size: side of a window in pixels, the same at each level.
        mlp_ratio: hidden channels of a feed-forward network by channels.
        qkv_bias: whether queries, keys and values have a learnable bias.
        qk_scale: factor of the products; None for (channels / heads) ** -0.5.
        drop_rate: dropout of the outputs of attention and feed-forward network.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: probability with which the last block's branches are left out, rising from 0 at the first.
        norm_layer: makes a normalisation over the last of its input's dimensions from the number of channels.
        shift: move every second block's windows by half a window.
        local_enhancement: have the convolutional branch; without it attention stands alone.
        arrangement: 'parallel', both branches see the same, or 'sequential', convolutions see what attention has made.
        fusion: of parallel branches: 'add', 'concat' (and a linear layer) or 'gate' (learned shares).
        compress_ratio: channels // compress_ratio are left inside the convolutional branch.
        lem_norm: normalisation inside it: 'none', 'instance' or 'batch'.
        squeeze_factor: channel attention at its end with channels // squeeze_factor in between; 0 for none.
        feed_forward: 'mlp', or 'gated' with a depthwise convolution.
        overlap_ratio: an overlapping cross-attention block closes each level, its windows larger by this part of their
            side; 0 for none.
        downsampler: 'conv' (strided) or 'pixelunshuffle'.
        level_upsampler: 'transposed' (convolution), 'interpolate' or 'pixelshuffle'.
        skip: 'concat' (and a linear layer) or 'add'.
        use_checkpoint: recompute activations in the backward pass: True for all blocks, a number for that many first
            ones, False for none. Same gradients, less memory, more time.
        upscale: factor between input and output, 1 to 4.

    Attributes:
        size_multiple: inputs are padded to a multiple of it inside `forward`: the window at the deepest level.
        upscale, in_chans, window_size: as given.

    Raises:
        ValueError: arguments that do not fit each other; the message has the value and the remedy.
    """

    position_index: Tensor
    overlap_index: Tensor
    attn_masks: Tensor

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 48,
        depths: Sequence[int] = (6, 8, 8, 6),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        refinement_depth: int = 4,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        shift: bool = True,
        local_enhancement: bool = True,
        arrangement: str = 'parallel',
        fusion: str = 'add',
        compress_ratio: int = 2,
        lem_norm: str = 'none',
        squeeze_factor: int = 0,
        feed_forward: str = 'mlp',
        overlap_ratio: float = 0.0,
        downsampler: str = 'conv',
        level_upsampler: str = 'transposed',
        skip: str = 'concat',
        use_checkpoint: bool | int = False,
        upscale: int = 1,
    ) -> None:
        super().__init__()
        check_counts(depths, num_heads, in_chans)
        if refinement_depth < 0:
            raise ValueError(f'refinement_depth {refinement_depth}: give a number of blocks, 0 or more')
        if not 1 <= upscale <= 4:
            raise ValueError(f'upscale {upscale} is out of reach: give 1, 2, 3 or 4')
        if lem_norm == 'batch' and use_checkpoint:
            raise ValueError(
                "lem_norm 'batch' with use_checkpoint would count each batch twice in its running statistics: "
                "give lem_norm 'none' or 'instance', or leave use_checkpoint out"
            )
        options = HybridOptions(
            local=local_enhancement,
            arrangement=arrangement,
            fusion=fusion,
            compress_ratio=compress_ratio,
            norm=lem_norm,
            squeeze_factor=squeeze_factor,
            feed_forward=feed_forward,
            shift=shift,
            skip=skip,
        )
        configs = [
            BlockConfig(
                dim=embed_dim << level,
                num_heads=heads,
                window_size=window_size,
                overlap_ratio=overlap_ratio,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                norm_layer=norm_layer,
            )
            for level, heads in enumerate(num_heads)
        ]
        self.in_chans = in_chans
        self.window_size = window_size
        self.upscale = upscale
        self.size_multiple = window_size << (len(depths) - 1)
        self._overlap_size = configs[0].overlap_size
        for name in ('position_index', 'overlap_index', 'attn_masks'):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.reset_buffers()

        overlap = self._overlap_size > window_size
        order = [*range(len(depths)), *reversed(range(len(depths) - 1))]  # levels on the way down and up again
        counts = [*(depths[level] for level in order), refinement_depth]
        closed = [count + overlap for count in counts[:-1]] + counts[-1:]
        paths, checkpointed = drop_paths(drop_path_rate, counts), checkpointed_blocks(use_checkpoint, closed)
        levels = [
            HybridLevel(configs[level], options, path, overlap, recomputed)
            for level, path, recomputed in zip(order, paths, checkpointed, strict=False)
        ]
        deepest = len(depths) - 1
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.encoder = nn.ModuleList(levels[:deepest])
        self.down = nn.ModuleList(LevelDown(downsampler, config.dim) for config in configs[:deepest])
        self.bottleneck = levels[deepest]
        self.up = nn.ModuleList(LevelUp(level_upsampler, skip, configs[level].dim) for level in order[deepest + 1 :])
        self.decoder = nn.ModuleList(levels[deepest + 1 :])
        self.refinement = HybridLevel(configs[0], options, paths[-1], False, checkpointed[-1])
        head = reconstruction('pixelshuffledirect' if upscale > 1 else '', upscale, embed_dim, embed_dim, in_chans)
        for name, module in head.items():
            self.add_module(name, module)
        self._head = tuple(head)
        self.apply(_init_weights)
        last = next(step for step in flat_steps(head.values()) if isinstance(step, nn.Conv2d))
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def reset_buffers(self) -> None:
        """Fill the buffers, which no weights file holds. Loading does it, so that `to_empty` after `meta` is safe."""
        device, side = self.position_index.device, self.window_size
        self.position_index = relative_position_index(side).to(device)
        rows = (side + self._overlap_size - 1) ** 2
        self.overlap_index = overlapping_position_index(side, self._overlap_size).remainder(rows).to(device)
        self.attn_masks = shift_masks(side, side // 2).to(device, self.attn_masks.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.reset_buffers()

    def forward_features(self, x: Tensor) -> Tensor:
        """What encoder, bottleneck, decoder and refinement make of an image.

        Args:
            x: (B, in_chans, H, W); H and W are multiples of size_multiple.

        Returns:
            (B, embed_dim, H, W).
        """
        tables = WindowTables(self.position_index, self.overlap_index, self.attn_masks)
        stream = self.attn_masks.dtype  # fp32 under autocast, too: CUDA normalises nothing of another type than weights
        x = self.conv_first(x.contiguous(memory_format=torch.channels_last)).to(stream).permute(0, 2, 3, 1)
        skips = []
        for level, down in zip(self.encoder, self.down, strict=True):
            skips.append(level(x, tables))
            x = down(skips[-1]).to(stream)
        x = self.bottleneck(x, tables)
        for level, up in zip(self.decoder, self.up, strict=True):
            x = level(up(x, skips.pop()).to(stream), tables)
        return self.refinement(x, tables).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor) -> Tensor:
        """What is added to the input, or to the input enlarged.

        Args:
            x: (B, embed_dim, H, W).

        Returns:
            (B, in_chans, H * upscale, W * upscale).
        """
        steps = flat_steps(getattr(self, name) for name in self._head)
        if use_strips(x, self):
            return apply_in_strips(steps, x)
        for step in steps:
            x = step(like_weights(x, step))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image of any size from 1x1 up.

        Args:
            x: (B, in_chans, H, W), RGB or gray, float in [0, 1], noise may lead beyond it. Its dtype may be wider than
                the weights'.

        Returns:
            (B, in_chans, H * upscale, W * upscale), in x's dtype; near [0, 1], not clamped.

        Raises:
            ValueError: x is no batch of images of in_chans channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f'HATUNet takes (B, {self.in_chans}, H, W), not {tuple(x.shape)}: '
                'add the batch dimension, or build the network with in_chans equal to the channels of the image'
            )
        height, width = (side * self.upscale for side in x.shape[2:])
        padded = pad_to_multiple(x, self.size_multiple).to(self.conv_first.weight.dtype)
        change = self.forward_head(self.forward_features(padded))[:, :, :height, :width].to(x.dtype)
        base = x
        if self.upscale > 1:
            base = F.interpolate(x, scale_factor=self.upscale, mode='bicubic', align_corners=False)
        return base + change


def hat_unet_s(upscale: int = 1) -> HATUNet:
    """The small size: 6.2 M parameters, 24.2 G MACs at 256x256."""
    return HATUNet(
        embed_dim=32,
        depths=(2, 2, 3, 4),
        num_heads=(1, 2, 4, 8),
        refinement_depth=2,
        fusion='gate',
        upscale=upscale,
    )


def hat_unet(upscale: int = 1) -> HATUNet:
    """The size within Restormer's cost: 26.0 M parameters, 137.2 G MACs at 256x256."""
    return HATUNet(
        embed_dim=48,
        depths=(6, 8, 8, 6),
        num_heads=(2, 4, 8, 16),
        refinement_depth=4,
        fusion='gate',
        upscale=upscale,
    )


def _init_weights(module: nn.Module) -> None:
    """Linear layers as in HAT; convolutions keep torch's way."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
