"""Weights of Restormer, NAFNet and HATUNet: what their shapes say of the network."""

from __future__ import annotations

import math
from typing import Any

from hat_plugin.restore.detected import Detected, StateDict, count, ratio

_FUSIONS = {'concat': 'proj', 'gate': 'gate'}
_LEVEL_UPS = {'transposed': 'body', 'interpolate': 'body.1', 'pixelshuffle': 'body.0'}


def read_restormer(weights: StateDict, scale: int | None) -> Detected:
    """Restormer in any size; all of it is visible."""
    dim, channels = weights['patch_embed.proj.weight'].shape[:2]
    levels = ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
    # Any factor that gives the deepest level its hidden width gives the others theirs, which are halves, rounded down.
    deepest, hidden = weights['latent.0.ffn.project_out.weight'].shape[:2]
    arguments = {
        'inp_channels': channels,
        'out_channels': weights['output.weight'].shape[0],
        'dim': dim,
        'num_blocks': [count(weights, f'{level}.{{}}.') for level in levels],
        'num_refinement_blocks': count(weights, 'refinement.{}.'),
        'heads': [weights[f'{level}.0.attn.temperature'].shape[0] for level in levels],
        'ffn_expansion_factor': ratio(hidden, deepest),
        'bias': 'output.bias' in weights,
        'LayerNorm_type': 'WithBias' if 'latent.0.norm1.body.bias' in weights else 'BiasFree',
        'dual_pixel_task': 'skip_conv.weight' in weights,
    }
    return Detected('Restormer', arguments, 1, channels, 8)


def read_nafnet(weights: StateDict, scale: int | None) -> Detected:
    """NAFNet in any size. Not visible: whether it is tested with local statistics, as its deblurring networks are."""
    width, channels = weights['intro.weight'].shape[:2]
    levels = range(count(weights, 'downs.{}.'))
    arguments = {
        'img_channel': channels,
        'width': width,
        'middle_blk_num': count(weights, 'middle_blks.{}.'),
        'enc_blk_nums': [count(weights, f'encoders.{level}.{{}}.') for level in levels],
        'dec_blk_nums': [count(weights, f'decoders.{level}.{{}}.') for level in levels],
    }
    local = arguments['enc_blk_nums'] == [1, 1, 1, 28]  # GoPro's and REDS's; SIDD's has [2, 2, 4, 8]
    name, statistics = ('NAFNetLocal', 'local') if local else ('NAFNet', 'global')
    return Detected(name, arguments, 1, channels, 1 << len(levels), (f'{statistics} statistics ({name})',))


def read_hat_unet(weights: StateDict, scale: int | None) -> Detected:
    """HATUNet in any size. Not visible: whether windows shift, and whether branches that are added stand in a row."""
    dim, channels = weights['conv_first.weight'].shape[:2]
    names = [f'encoder.{level}' for level in range(count(weights, 'encoder.{}.'))] + ['bottleneck']
    blocks = [count(weights, f'{name}.blocks.{{}}.') for name in names]
    attention = 'attn.relative_position_bias_table'
    # A block of overlapping attention has its table to itself, one name shorter than the others'.
    closing = f'{names[0]}.blocks.{blocks[0] - 1}.relative_position_bias_table'
    first = f'{names[0]}.blocks.0.'
    window = (math.isqrt(weights[first + attention].shape[0]) + 1) // 2
    overlap = ratio(math.isqrt(weights[closing].shape[0]) + 1 - 2 * window, window) if closing in weights else 0.0
    gated = f'{first}mlp.depthwise.weight' in weights
    upscale = math.isqrt(weights['upsample.0.weight'].shape[0] // channels) if 'upsample.0.weight' in weights else 1
    assumed = ['shift true']
    up = next((kind for kind, key in _LEVEL_UPS.items() if f'up.0.{key}.weight' in weights), 'transposed')
    local = f'{first}local.conv.weight' in weights
    fusion = next((name for name, key in _FUSIONS.items() if f'{first}fusion.{key}.weight' in weights), 'add')
    if local and fusion == 'add':
        assumed.append('arrangement parallel')
    arguments = {
        'in_chans': channels,
        'embed_dim': dim,
        'depths': [number - (overlap > 0) for number in blocks],
        'num_heads': [weights[f'{name}.blocks.0.{attention}'].shape[1] for name in names],
        'refinement_depth': count(weights, 'refinement.blocks.{}.'),
        'window_size': window,
        'mlp_ratio': ratio(weights[f'{first}mlp.fc2.weight'].shape[1], dim),
        'qkv_bias': f'{first}attn.qkv.bias' in weights,
        'local_enhancement': local,
        'fusion': fusion,
        **(_local_enhancement(weights, f'{first}local.', dim) if local else {}),
        'feed_forward': 'gated' if gated else 'mlp',
        'overlap_ratio': overlap,
        'downsampler': 'conv' if 'down.0.body.weight' in weights or len(names) == 1 else 'pixelunshuffle',
        'level_upsampler': up,
        'skip': 'concat' if 'up.0.merge.weight' in weights or len(names) == 1 else 'add',
        'upscale': upscale,
    }
    return Detected('HATUNet', arguments, upscale, channels, window << (len(names) - 1), tuple(assumed))


def _local_enhancement(weights: StateDict, module: str, dim: int) -> dict[str, Any]:
    """Arguments of the convolutional branch."""
    norm = 'batch' if f'{module}norm1.running_mean' in weights else 'instance'
    squeezed = f'{module}weigh.attention.1.weight'
    return {
        'compress_ratio': dim // weights[f'{module}conv.weight'].shape[0],
        'lem_norm': norm if f'{module}norm1.weight' in weights else 'none',
        'squeeze_factor': dim // weights[squeezed].shape[0] if squeezed in weights else 0,
    }
