"""HAT, the hybrid attention transformer: published arguments, published weights, any input size.

Source: "Activating More Pixels in Image Super-Resolution Transformer" (CVPR 2023), section 3.1; options that the
published code accepts and ignores do here what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hat_plugin.layers.config import BlockConfig, WindowTables, check_counts, checkpointed_blocks, drop_paths
from hat_plugin.layers.embedding import PixelEmbed, pad_to_multiple, position_embedding, positions_at, token_grid
from hat_plugin.layers.hybrid import RHAG
from hat_plugin.layers.resample import reconstruction
from hat_plugin.layers.residual import add_in_strips, like_convolution, residual_convolution
from hat_plugin.layers.strips import apply_in_strips, flat_steps, like_weights, use_strips
from hat_plugin.layers.windows import overlapping_position_index, relative_position_index, shift_masks

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, RGB in [0, 1]


class HAT(nn.Module):
    """Hybrid attention transformer for super-resolution and same-size restoration.

    The arguments are those of the published option files. `HAT()` with all its defaults raises, because the published
    defaults contradict each other (upscale 2 with a same-size upsampler).

    Args:
        img_size: side of the training patch; int or (height, width). Only `ape` reads it: the network takes any size.
        patch_size: side of a token in pixels. Only `ape` reads it, to count tokens as published.
        in_chans: channels of the image; 3 (RGB, whose mean is subtracted) or any other number.
        embed_dim: channels of the body, a multiple of each of num_heads.
        depths: number of hybrid attention blocks of each group.
        num_heads: number of heads of each group.
        window_size: side of a window in pixels.
        compress_ratio: embed_dim // compress_ratio channels are left inside the channel attention block.
        squeeze_factor: embed_dim // squeeze_factor channels are left inside its channel attention.
        conv_scale: factor of the convolution branch beside the attention.
        overlap_ratio: by how much of its side an overlapping window is larger; int(window_size * overlap_ratio) is
            even, 0 or more.
        mlp_ratio: hidden channels of an MLP by embed_dim.
        qkv_bias: whether queries, keys and values have a learnable bias.
        qk_scale: factor of the products; None for (embed_dim / num_heads) ** -0.5.
        drop_rate: dropout of embedded pixels and of the outputs of attention and MLP.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: probability with which the last block's branches are left out, rising from 0 at the first.
        norm_layer: makes a normalisation over the last of its input's dimensions from the number of channels.
        ape: learn an absolute position embedding of img_size, resized to other sizes bicubically.
        patch_norm: normalise pixels after the first convolution.
        use_checkpoint: recompute activations in the backward pass: True for all blocks, a number for that many first
            ones (a group has its depth + 1), False for none. Same gradients, less memory, more time.
        upscale: factor between input and output.
        img_range: the body sees (image - mean) * img_range; 1.0 as published.
        upsampler: 'pixelshuffle', 'pixelshuffledirect', 'nearest+conv' or '' (same size, global residual); None is ''.
        resi_connection: what stands before a residual addition: '1conv', '3conv' or 'identity'.
        num_feat: channels on the way up; 64 in all published weights.

    Attributes:
        window_size: as given; inputs are padded to a multiple of it inside `forward`.
        upscale: as given.
        in_chans: as given.

    Raises:
        ValueError: arguments that do not fit each other; the message has the value and the remedy.
    """

    relative_position_index_SA: Tensor
    relative_position_index_OCA: Tensor
    mean: Tensor
    attn_masks: Tensor
    absolute_pos_embed: nn.Parameter | None

    def __init__(
        self,
        img_size: int | Sequence[int] = 64,
        patch_size: int | Sequence[int] = 1,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window_size: int = 7,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        conv_scale: float = 0.01,
        overlap_ratio: float = 0.5,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool | int = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str | None = '',
        resi_connection: str = '1conv',
        num_feat: int = 64,
    ) -> None:
        super().__init__()
        check_counts(depths, num_heads, in_chans, img_range)
        groups = [
            BlockConfig(
                dim=embed_dim,
                num_heads=heads,
                window_size=window_size,
                compress_ratio=compress_ratio,
                squeeze_factor=squeeze_factor,
                conv_scale=conv_scale,
                overlap_ratio=overlap_ratio,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                norm_layer=norm_layer,
            )
            for heads in num_heads
        ]
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.window_size = window_size
        self.upscale = upscale
        self.img_range = img_range
        self.upsampler = upsampler or ''
        self.register_buffer('relative_position_index_SA', relative_position_index(window_size))
        self._overlap_size = groups[0].overlap_size
        overlap_index = overlapping_position_index(window_size, self._overlap_size)
        self.register_buffer('relative_position_index_OCA', overlap_index)
        self.register_buffer('mean', torch.empty(0), persistent=False)
        self.register_buffer('attn_masks', torch.empty(0), persistent=False)
        self.reset_buffers()

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = PixelEmbed(embed_dim, norm_layer if patch_norm else None)
        self._grid = token_grid(img_size, patch_size)
        self.register_parameter('absolute_pos_embed', position_embedding(self._grid, embed_dim) if ape else None)
        self.pos_drop = nn.Dropout(drop_rate)
        paths = drop_paths(drop_path_rate, depths)
        checkpointed = checkpointed_blocks(use_checkpoint, [depth + 1 for depth in depths])  # an OCAB closes each group
        self.layers = nn.ModuleList(
            RHAG(config, path, count, resi_connection)
            for config, path, count in zip(groups, paths, checkpointed, strict=True)
        )
        self.norm = norm_layer(embed_dim)
        self.conv_after_body = residual_convolution(resi_connection, embed_dim)
        head = reconstruction(self.upsampler, upscale, embed_dim, num_feat, in_chans)
        for name, module in head.items():
            self.add_module(name, module)
        self._head = tuple(head)
        self.apply(_init_weights)

    def reset_buffers(self) -> None:
        """Fill the buffers that no weights file holds. Loading does it, so that `to_empty` after `meta` is safe."""
        device = self.relative_position_index_SA.device
        mean = RGB_MEAN if self.in_chans == 3 else (0.0,)
        self.mean = torch.tensor(mean, dtype=self.mean.dtype, device=device).view(1, -1, 1, 1)
        masks = shift_masks(self.window_size, self.window_size // 2)
        self.attn_masks = masks.to(device=device, dtype=self.mean.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.reset_buffers()

    def forward_features(self, x: Tensor) -> Tensor:
        """Shallow and deep features.

        Args:
            x: normalised image, (B, in_chans, H, W); H and W are multiples of window_size.

        Returns:
            (B, embed_dim, H, W).
        """
        image = x
        shallow: Tensor | None = self._shallow(x)
        x = self.patch_embed(shallow)
        if use_strips(x, self):
            shallow = None  # made again at the end, which takes less than keeping it through all layers
        if self.absolute_pos_embed is not None:
            x = x + positions_at(self.absolute_pos_embed, self._grid, (x.shape[1], x.shape[2]))
        x = self.pos_drop(x)
        rows = (self.window_size + self._overlap_size - 1) ** 2
        overlap_index = self.relative_position_index_OCA.remainder(rows)
        tables = WindowTables(self.relative_position_index_SA, overlap_index, self.attn_masks)
        for layer in self.layers:
            x = layer(x, tables)
        if shallow is None:
            shallow = self._shallow(image)
            body = self.conv_after_body
            total = add_in_strips(shallow, shallow, body, lambda top, bottom: self.norm(x[:, top:bottom]))
            return total.permute(0, 3, 1, 2)
        x = like_convolution(self.norm(x), self.conv_after_body).permute(0, 3, 1, 2)
        return (self.conv_after_body(x).permute(0, 2, 3, 1) + shallow).permute(0, 3, 1, 2)

    def _shallow(self, image: Tensor) -> Tensor:
        """Shallow features, in the residual stream's type: (B, in_chans, H, W) to (B, H, W, embed_dim)."""
        features = self.conv_first(image.contiguous(memory_format=torch.channels_last))
        return features.to(self.mean.dtype).permute(0, 2, 3, 1)

    def forward_head(self, x: Tensor) -> Tensor:
        """From features to the (normalised) image, or for upsampler '' to what is added to the input.

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
            x: (B, in_chans, H, W), RGB or gray, float in [0, 1]. Its dtype may be wider than the weights'.

        Returns:
            (B, in_chans, H * upscale, W * upscale), in x's dtype; near [0, 1], not clamped.

        Raises:
            ValueError: x is no batch of images of in_chans channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f'HAT takes (B, {self.in_chans}, H, W), not {tuple(x.shape)}: '
                'add the batch dimension, or build the network with in_chans equal to the channels of the image'
            )
        height, width = x.shape[2:]
        mean = self.mean.to(x.dtype)
        x = pad_to_multiple((x - mean) * self.img_range, self.window_size)
        y = self.forward_head(self.forward_features(x.to(self.conv_first.weight.dtype))).to(x.dtype)
        if not self.upsampler:
            y = x + y
        y = y / self.img_range + mean
        return y[:, :, : height * self.upscale, : width * self.upscale]


def hat_s(upscale: int = 4) -> HAT:
    """HAT-S of the paper: 9.6 M parameters at x4. Published weights fit."""
    return _published(upscale, embed_dim=144, compress_ratio=24, squeeze_factor=24)


def hat(upscale: int = 4) -> HAT:
    """HAT of the paper: 20.8 M parameters at x4. Published weights fit."""
    return _published(upscale)


def hat_l(upscale: int = 4) -> HAT:
    """HAT-L of the paper, HAT at twice its depth: 40.8 M parameters at x4. Published weights fit."""
    return _published(upscale, groups=12)


def _published(
    upscale: int, groups: int = 6, embed_dim: int = 180, compress_ratio: int = 3, squeeze_factor: int = 30
) -> HAT:
    """What HAT-S, HAT and HAT-L have in common."""
    return HAT(
        embed_dim=embed_dim,
        depths=(6,) * groups,
        num_heads=(6,) * groups,
        window_size=16,
        compress_ratio=compress_ratio,
        squeeze_factor=squeeze_factor,
        mlp_ratio=2.0,
        upscale=upscale,
        upsampler='pixelshuffle',
    )


def _init_weights(module: nn.Module) -> None:
    """Initialise linear layers and normalisations as published; convolutions keep torch's way."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.zeros_(module.bias)
        nn.init.ones_(module.weight)
