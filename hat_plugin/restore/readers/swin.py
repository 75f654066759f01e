"""HAT and SwinIR, whose weights have most names in common."""

from __future__ import annotations

import math
from typing import Any

from hat_plugin.restore.readers.shapes import Detected, StateDict, count, ratio_of, read_upsampler

_GROUP = 'layers.{}.residual_group.'
_BLOCK = 'layers.{}.residual_group.blocks.{}.'


def read_hat(weights: StateDict, scale: int | None) -> Detected:
    """HAT in any size. Not visible: conv_scale, img_range (and what acts in training alone)."""
    common, found_scale, channels, assumed = _read_swin_common(weights, scale, 'overlap_attn')
    dim, window = common['embed_dim'], common['window_size']
    block = _BLOCK.format(0, 0)
    side = math.isqrt(weights[_GROUP.format(0) + 'overlap_attn.relative_position_bias_table'].shape[0])
    arguments = {
        **common,
        'compress_ratio': dim // weights[f'{block}conv_block.cab.0.weight'].shape[0],
        'squeeze_factor': dim // weights[f'{block}conv_block.cab.3.attention.1.weight'].shape[0],
        'overlap_ratio': ratio_of(side + 1 - 2 * window, window),
        'conv_scale': 0.01,
        'img_range': 1.0,
    }
    if arguments['upsampler'] in ('pixelshuffle', 'nearest+conv'):
        arguments['num_feat'] = weights['conv_last.weight'].shape[1]
    return Detected('HAT', arguments, found_scale, channels, window, ('conv_scale 0.01', 'img_range 1', *assumed))


def read_swinir(weights: StateDict, scale: int | None) -> Detected:
    """SwinIR in any size. Not visible: img_range, which is 255 in the published JPEG networks (window 7), else 1."""
    common, found_scale, channels, assumed = _read_swin_common(weights, scale, 'blocks.0.attn')
    window = common['window_size']
    img_range = 255.0 if window == 7 and common['upsampler'] == '' else 1.0
    arguments = {**common, 'img_range': img_range}
    if 'img_size' not in arguments:
        arguments['img_size'] = _swinir_training_size(weights, window)
    return Detected('SwinIR', arguments, found_scale, channels, window, (f'img_range {img_range:g}', *assumed))


def _swinir_training_size(weights: StateDict, window: int) -> int:
    """The side of the training crop: SwinIR keeps the attention masks for it among its weights."""
    masks = [tensor for key, tensor in weights.items() if key.endswith('.attn_mask')]
    if masks:
        return math.isqrt(masks[0].shape[0]) * window
    whole = any(key.endswith('relative_position_index') for key in weights)
    # Buffers are there, but no mask: the crop was one window, and no block shifts.
    return window if whole else 8 * window


def _read_swin_common(
    weights: StateDict, scale: int | None, attention: str
) -> tuple[dict[str, Any], int, int, tuple[str, ...]]:
    """What HAT and SwinIR share: (arguments, scale, channels, assumptions)."""
    dim, channels = weights['conv_first.weight'].shape[:2]
    groups = count(weights, 'layers.{}.')
    block = _BLOCK.format(0, 0)
    heads = f'{attention}.relative_position_bias_table'
    table_side = math.isqrt(weights[f'{block}attn.relative_position_bias_table'].shape[0])
    upsampler, upscale, assumed = read_upsampler(weights, channels, scale)
    arguments: dict[str, Any] = {
        'in_chans': channels,
        'embed_dim': dim,
        'depths': [count(weights, f'layers.{group}.residual_group.blocks.{{}}.') for group in range(groups)],
        'num_heads': [weights[_GROUP.format(group) + heads].shape[1] for group in range(groups)],
        'window_size': (table_side + 1) // 2,
        'mlp_ratio': ratio_of(weights[f'{block}mlp.fc1.weight'].shape[0], dim),
        'qkv_bias': f'{block}attn.qkv.bias' in weights,
        'patch_norm': 'patch_embed.norm.weight' in weights,
        'upscale': upscale,
        'upsampler': upsampler,
        'resi_connection': _residual_connection(weights),
    }
    if 'absolute_pos_embed' in weights:
        arguments |= {'ape': True, 'img_size': math.isqrt(weights['absolute_pos_embed'].shape[1])}
    return arguments, upscale, channels, assumed


def _residual_connection(weights: StateDict) -> str:
    if 'conv_after_body.weight' in weights:
        return '1conv'
    return '3conv' if 'conv_after_body.0.weight' in weights else 'identity'
