"""HATUNet."""

from __future__ import annotations

import math
from typing import Any

from hat_plugin.restore.readers.shapes import Detected, StateDict, count, ratio_of, read_upsampler

_TABLE = 'relative_position_bias_table'
_BLOCK = 'bottleneck.blocks.0.'


def read_hat_unet(weights: StateDict, scale: int | None) -> Detected:
    """HATUNet in any size. Not visible: `_assumed`, and what acts in training alone."""
    dim, channels = weights['conv_first.weight'].shape[:2]
    deepest = count(weights, 'encoder.{}.')
    levels = [*(f'encoder.{level}' for level in range(deepest)), 'bottleneck']
    window = (math.isqrt(weights[f'{_BLOCK}attn.{_TABLE}'].shape[0]) + 1) // 2
    _, upscale, _ = read_upsampler(weights, channels, scale)
    blocks = count(weights, 'bottleneck.blocks.{}.')
    overlapping = f'bottleneck.blocks.{blocks - 1}.{_TABLE}'
    closed = overlapping in weights
    # Any factor that gives the deepest level its widths gives the others theirs, which are halves, rounded down.
    wide, hidden = weights[f'{_BLOCK}mlp.fc2.weight'].shape[:2]
    arguments = {
        'in_chans': channels,
        'embed_dim': dim,
        'depths': [count(weights, f'{level}.blocks.{{}}.') - closed for level in levels],
        'num_heads': [weights[f'{level}.blocks.0.attn.{_TABLE}'].shape[1] for level in levels],
        'refinement_depth': count(weights, 'refinement.blocks.{}.'),
        'window_size': window,
        'mlp_ratio': ratio_of(hidden, wide),
        'qkv_bias': f'{_BLOCK}attn.qkv.bias' in weights,
        'feed_forward': 'gated' if f'{_BLOCK}mlp.depthwise.weight' in weights else 'mlp',
        'upscale': upscale,
        **_enhancement(weights, wide),
        **(_between_levels(weights) if deepest else {}),
    }
    if closed:
        larger = math.isqrt(weights[overlapping].shape[0]) + 1 - window
        arguments['overlap_ratio'] = ratio_of(larger - window, window)
    return Detected('HATUNet', arguments, upscale, channels, window << deepest, _assumed(arguments))


def _enhancement(weights: StateDict, wide: int) -> dict[str, Any]:
    """The local enhancement module of a block of `wide` channels, and how it is fused with attention."""
    local = f'{_BLOCK}local.'
    if f'{local}conv.weight' not in weights:
        return {'local_enhancement': False}
    learned = {'proj': 'concat', 'gate': 'gate'}
    fusions = [name for layer, name in learned.items() if f'{_BLOCK}fusion.{layer}.weight' in weights]
    norm = 'none'
    if f'{local}norm1.weight' in weights:
        norm = 'batch' if f'{local}norm1.running_mean' in weights else 'instance'
    squeezed = weights.get(f'{local}weigh.attention.1.weight')
    return {
        'local_enhancement': True,
        'fusion': fusions[0] if fusions else 'add',
        'compress_ratio': wide // weights[f'{local}conv.weight'].shape[0],
        'lem_norm': norm,
        'squeeze_factor': 0 if squeezed is None else wide // squeezed.shape[0],
    }


def _between_levels(weights: StateDict) -> dict[str, Any]:
    """The ways down and up, and how the encoder's features join, of a network of two levels or more.

    Raises:
        KeyError: there is no known way.
    """
    ways = {'body': 'transposed', 'body.0': 'pixelshuffle', 'body.1': 'interpolate'}
    up = [name for place, name in ways.items() if f'up.0.{place}.weight' in weights]
    if not up:
        raise KeyError('up.0.body*')
    return {
        'downsampler': 'conv' if 'down.0.body.weight' in weights else 'pixelunshuffle',
        'level_upsampler': up[0],
        'skip': 'concat' if 'up.0.merge.weight' in weights else 'add',
    }


def _assumed(arguments: dict[str, Any]) -> tuple[str, ...]:
    """What acts in inference and leaves no trace: of two branches that are added, in which order they come, too."""
    ordered = arguments.get('fusion') == 'add'
    return ('shift true', 'no qk_scale', *(('arrangement parallel',) if ordered else ()))
